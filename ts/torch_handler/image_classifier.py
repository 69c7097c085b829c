"""Image classification: the most probable labels of each image."""

from __future__ import annotations

import torch

from ts.handler_utils.timer import timed
from ts.torch_handler.image_transforms import (
    CenterCrop,
    Compose,
    ConvertRGB,
    Normalize,
    Resize,
    ToTensor,
)
from ts.torch_handler.vision_handler import VisionHandler
from ts.utils.util import map_class_to_label


class ImageClassifier(VisionHandler):
    """Classifies images with a model that takes ImageNet's input and returns logits."""

    topk = 5

    # The first step makes palette, grey and transparent images fit the three channels of the
    # others. A subclass with its own image_processing gets the image as it was opened.
    image_processing = Compose(
        [
            ConvertRGB(),
            Resize(256),
            CenterCrop(224),
            ToTensor(),
            Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )

    def set_max_result_classes(self, topk: int) -> None:
        """Set how many labels an answer holds."""
        self.topk = topk

    def get_max_result_classes(self) -> int:
        """How many labels an answer holds, unless the model has fewer classes."""
        return self.topk

    @timed
    def postprocess(self, data: torch.Tensor) -> list[dict[str, float]]:
        """Per image, label to probability, most probable first.

        data: logits [images, classes].
        """
        return most_probable_labels(data, self.topk, self.mapping)


def most_probable_labels(
    logits: torch.Tensor, topk: int, mapping: dict[str, str] | None
) -> list[dict[str, float]]:
    """Per row of `logits` [images, classes], the `topk` labels with their probabilities.

    A model with fewer classes than `topk` gives all of them.
    """
    probabilities = torch.softmax(logits, dim=1)
    best, classes = torch.topk(probabilities, min(topk, probabilities.shape[1]), dim=1)
    return map_class_to_label(best.tolist(), mapping, classes.tolist())
