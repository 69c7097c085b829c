"""Semantic segmentation: the class of each pixel."""

from __future__ import annotations

import torch

from ts.handler_utils.timer import timed
from ts.torch_handler.image_classifier import ImageClassifier as _ImageClassifier
from ts.torch_handler.vision_handler import VisionHandler


class ImageSegmenter(VisionHandler):
    """Segments images with a model that returns `{"out": [images, classes, height, width]}`."""

    image_processing = _ImageClassifier.image_processing

    @timed
    def postprocess(self, data: dict[str, torch.Tensor]) -> list[object]:
        """Nested lists [images][height][width][2]: class index as a float, probability."""
        probability, index = torch.softmax(data["out"], dim=1).max(dim=1)
        return torch.stack([index.to(probability.dtype), probability], dim=3).tolist()
