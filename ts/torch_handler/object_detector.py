"""Object detection: labelled boxes of each image."""

from __future__ import annotations

from typing import Any

import torch

from ts.handler_utils.timer import timed
from ts.torch_handler.base_handler import request_payload
from ts.torch_handler.image_transforms import Compose, ConvertRGB, ToTensor
from ts.torch_handler.vision_handler import VisionHandler
from ts.utils.util import map_class_to_label


class ObjectDetector(VisionHandler):
    """Detects objects with a model that returns boxes, labels and scores per image."""

    threshold = 0.5

    # Detection models take three channels; see ImageClassifier.
    image_processing = Compose([ConvertRGB(), ToTensor()])

    @timed
    def preprocess(self, data: list[Any]) -> Any:
        """The images as one tensor, or as a list of tensors if their sizes differ."""
        images = [self._to_tensor(request_payload(row)).to(self.device) for row in data]
        if len({image.shape for image in images}) == 1:
            return torch.stack(images)
        return images

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's detections, one dict per image."""
        if isinstance(data, torch.Tensor):
            data = data.to(self.device)
        with torch.inference_mode():
            return self.model(data, *args, **kwargs)

    @timed
    def postprocess(self, data: list[dict[str, torch.Tensor]]) -> list[list[dict[str, Any]]]:
        """Per image, `{label: [x1, y1, x2, y2], "score": s}` for scores from the threshold up."""
        return [self._describe_boxes(detection) for detection in data]

    def _describe_boxes(self, detection: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        keep = detection["scores"] >= self.threshold
        boxes, labels, scores = (
            detection[key][keep].tolist() for key in ("boxes", "labels", "scores")
        )
        found = map_class_to_label([[box] for box in boxes], self.mapping, [[x] for x in labels])
        return [{**box, "score": score} for box, score in zip(found, scores, strict=True)]
