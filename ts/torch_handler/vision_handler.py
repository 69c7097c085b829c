"""What handlers for image models share: requests to a batch of images, and explanations."""

from __future__ import annotations

import base64
import io
from abc import ABC
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from ts.handler_utils.timer import timed
from ts.torch_handler.base_handler import BaseHandler, request_payload

INTEGRATION_STEPS = 15  # of integrated gradients; more is finer and proportionally slower


class VisionHandler(BaseHandler, ABC):
    """A handler whose requests are images.

    A subclass sets `image_processing`, a callable from a PIL image to a tensor.
    """

    image_processing: Callable[[Image.Image], torch.Tensor]
    _ig: Any = None

    def initialize(self, context: Any) -> None:
        """Load the model; lift Pillow's size limit if the configuration says so."""
        super().initialize(context)
        self._ig = None
        if not context.system_properties.get("limit_max_image_pixels", True):
            Image.MAX_IMAGE_PIXELS = None

    @property
    def ig(self) -> Any:
        """Captum's IntegratedGradients for the model.

        Made on first use: a model that is never asked for explanations needs no Captum.
        """
        if self._ig is None:
            try:
                from captum.attr import IntegratedGradients
            except ImportError as error:
                raise RuntimeError(
                    "explanations need Captum; install it with: pip install captum"
                ) from error
            self._ig = IntegratedGradients(self.model)
        return self._ig

    @ig.setter
    def ig(self, value: Any) -> None:
        self._ig = value

    @timed
    def preprocess(self, data: list[Any]) -> torch.Tensor:
        """The images as one tensor on the device.

        A request carries an encoded image (as bytes, or as base64 text) or the values of a tensor.
        """
        return torch.stack([self._to_tensor(request_payload(row)) for row in data]).to(self.device)

    def _to_tensor(self, image: Any) -> torch.Tensor:
        if isinstance(image, str):
            image = base64.b64decode(image)
        if isinstance(image, bytes | bytearray | memoryview):
            return self.image_processing(Image.open(io.BytesIO(image)))
        return torch.as_tensor(image, dtype=torch.float32)

    def get_insights(self, tensor_data: torch.Tensor, _: Any, target: Any = 0) -> list[Any]:
        """Attribution of each input value to the output `target`, nested like the input tensor."""
        return self.ig.attribute(tensor_data, target=target, n_steps=INTEGRATION_STEPS).tolist()
