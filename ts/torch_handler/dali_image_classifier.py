"""Image classification with DALI preprocessing."""

from __future__ import annotations

import torch

from ts.handler_utils.timer import timed
from ts.torch_handler import image_classifier
from ts.torch_handler.dali_handler import DALIHandler


class DALIImageClassifier(DALIHandler):
    """Like ImageClassifier, but images are prepared by the DALI pipeline."""

    topk = 5

    def set_max_result_classes(self, topk: int) -> None:
        """Set how many labels an answer holds."""
        self.topk = topk

    def get_max_result_classes(self) -> int:
        """How many labels an answer holds, unless the model has fewer classes."""
        return self.topk

    @timed
    def postprocess(self, data: torch.Tensor) -> list[dict[str, float]]:
        """Per image, label to probability, most probable first."""
        return image_classifier.most_probable_labels(data, self.topk, self.mapping)
