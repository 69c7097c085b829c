"""What handlers share whose images are decoded and resized by NVIDIA DALI."""

from __future__ import annotations

import base64
from abc import ABC
from typing import Any

import torch

from ts.handler_utils.preprocess.dali import INPUT_NAME, get_dali_pipeline
from ts.handler_utils.timer import timed
from ts.torch_handler.base_handler import request_payload
from ts.torch_handler.vision_handler import VisionHandler


class DALIHandler(VisionHandler, ABC):
    """A handler for images whose `image_processing` is a DALI pipeline.

    The pipeline has one external source, named by `dali.input_name` (default "my_source"), and one
    output of images of one size.
    """

    pipeline: Any = None
    input_name = INPUT_NAME

    def initialize(self, context: Any) -> None:
        """Load the model and build the pipeline; RuntimeError names what to install."""
        super().initialize(context)
        self.pipeline = get_dali_pipeline(context)
        self.input_name = context.model_yaml_config["dali"].get("input_name") or INPUT_NAME
        self.pipeline.build()

    @timed
    def preprocess(self, data: list[Any]) -> torch.Tensor:
        """The images as one tensor on the device.

        A request carries an encoded image, as bytes or as base64 text.
        """
        import numpy as np
        from nvidia.dali.plugin.pytorch import feed_ndarray, to_torch_type

        images = []
        for row in data:
            image = request_payload(row)
            if isinstance(image, str):
                image = base64.b64decode(image)
            images.append(np.frombuffer(image, dtype=np.uint8))
        self.pipeline.feed_input(self.input_name, images)
        (output,) = self.pipeline.run()
        dense = output.as_tensor()
        batch = torch.empty(
            tuple(dense.shape()), dtype=to_torch_type[dense.dtype], device=self.device
        )
        feed_ndarray(dense, batch)
        return batch[: len(images)]
