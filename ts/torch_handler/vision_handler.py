"""What handlers for image models share: requests to a batch of images, and explanations."""

from __future__ import annotations

import base64
import io
import warnings
from abc import ABC
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image

from ts.handler_utils.timer import timed
from ts.torch_handler.attribution_view import draw_attribution
from ts.torch_handler.base_handler import BaseHandler, request_payload
from ts.torch_handler.explanations import (
    IMAGE_METHODS,
    ExplainedBatch,
    ExplainingHandler,
    Method,
    captum_attr,
    find_layer,
)
from ts.torch_handler.model_files import has_gradients
from ts.utils.util import PredictionException


class VisionHandler(ExplainingHandler, BaseHandler, ABC):
    """A handler whose requests are images.

    A subclass sets `image_processing`, a callable from a PIL image to a tensor.
    """

    image_processing: Callable[[Image.Image], torch.Tensor]
    _explain_methods = IMAGE_METHODS
    _explain_formats = ("json", "png")
    _ig: Any = None

    def initialize(self, context: Any) -> None:
        """Load the model; lift Pillow's size limit if the configuration says so.

        Raises ValueError for a `captum` section that cannot be followed.
        """
        super().initialize(context)
        self._ig = None
        self._set_up_explanations(self.model_yaml_config.get("captum"))
        if not context.system_properties.get("limit_max_image_pixels", True):
            Image.MAX_IMAGE_PIXELS = None

    @property
    def ig(self) -> Any:
        """Captum's IntegratedGradients for the model.

        Made on first use: a model that is never asked for explanations needs no Captum.
        """
        if self._ig is None:
            self._ig = captum_attr().IntegratedGradients(self.model)
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

    def _explained_output(self, data_preprocess: torch.Tensor) -> Any:
        return self._run_model(data_preprocess)

    def _explain_batch(
        self, data_preprocess: torch.Tensor, batch: ExplainedBatch, targets: Mapping[int, Any]
    ) -> None:
        """The attributions, as nested lists or as pictures; requests of a method go together."""
        methods: dict[str, list[int]] = {}
        for position, choice in batch.choices.items():
            methods.setdefault(choice.method, []).append(position)
        for method, positions in methods.items():
            attributions = self._attribute(
                data_preprocess[positions], [targets[position] for position in positions], method
            )
            for position, attribution in zip(positions, attributions, strict=True):
                if batch.choices[position].format == "png":
                    picture = self._picture(data_preprocess[position])
                    batch.answer(position, draw_attribution(picture, attribution))
                else:
                    batch.answer(position, attribution.tolist())

    def get_insights(self, tensor_data: torch.Tensor, _: Any, target: Any = 0) -> list[Any]:
        """Attribution of each input value to the output `target`, nested like the input tensor."""
        targets = [target] * len(tensor_data)
        return self._attribute(tensor_data, targets, self._settings().method).tolist()

    _default_insights = get_insights

    def _set_up_explanations(self, section: Any) -> None:
        self._explainers: dict[str, Any] = {}  # of Captum, by method
        super()._set_up_explanations(section)

    def _attribute(self, images: torch.Tensor, targets: list[Any], name: str) -> torch.Tensor:
        """The attributions of a method, [images, channels or 1, height, width]."""
        settings = self._settings()
        images = self._as_input(images)
        method = IMAGE_METHODS[name]
        is_configured = name == settings.method
        arguments = dict(settings.arguments if is_configured else method.defaults)
        if name == "gradient_shap":
            arguments["baselines"] = torch.full_like(images, arguments["baselines"])
        explainer = self._explainer(name, method)
        if is_configured and settings.smoothing is not None:
            explainer = captum_attr().NoiseTunnel(explainer)
            arguments.update(settings.smoothing)
        is_common = all(target == targets[0] for target in targets)
        with warnings.catch_warnings():
            # Captum's advice to people who call it: hooks it sets, gradients it asks for.
            warnings.simplefilter("ignore", UserWarning)
            attributions = explainer.attribute(
                images.detach().clone().requires_grad_(),
                target=targets[0] if is_common else targets,
                **arguments,
            )
        if method.takes_layer:
            attributions = captum_attr().LayerAttribution.interpolate(
                attributions, tuple(images.shape[2:]), "bilinear"
            )
        return attributions.detach()

    def _explainer(self, name: str, method: Method) -> Any:
        if not has_gradients(self.model):
            if name != "occlusion":
                raise PredictionException(
                    f"{name} needs gradients, which this kind of model file does not give; "
                    "captum.method: occlusion needs none",
                    501,
                )
            return captum_attr().Occlusion(self._run_model)
        if name == "integrated_gradients":
            return self.ig
        if name not in self._explainers:
            make = getattr(captum_attr(), method.captum_class)
            layer = self._settings().layer if method.takes_layer else None
            self._explainers[name] = (
                make(self.model)
                if layer is None
                else make(self.model, find_layer(self.model, layer))
            )
        return self._explainers[name]

    def _picture(self, image: torch.Tensor) -> torch.Tensor:
        """The model's input as it looked before it was normalized, [channels, h, w] in [0, 1]."""
        image = image.detach().to("cpu", torch.float32)
        processing = getattr(self, "image_processing", None)  # DALI's handlers have none
        for step in getattr(processing, "transforms", ()):
            mean, std = getattr(step, "mean", None), getattr(step, "std", None)
            if mean is not None and std is not None:
                mean, std = torch.as_tensor(mean), torch.as_tensor(std)
                return image * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
        low, high = image.min(), image.max()
        return (image - low) / (high - low) if high > low else torch.zeros_like(image)
