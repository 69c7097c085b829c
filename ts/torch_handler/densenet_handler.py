"""A stand-alone handler whose requests and answers are tensors (legacy)."""

from __future__ import annotations

import io
import os
import time
import warnings
from typing import Any

import torch

from ts.torch_handler.base_handler import _import_model_file, request_payload
from ts.torch_handler.model_files import load_torch_file
from ts.utils.util import list_classes_from_module


class DenseNetHandler:
    """Runs a model on tensors that clients send as `torch.save` bytes.

    The answer is one stacked tensor, not a list, so use a batch size of 1 and an entry point that
    puts it in a list, or call the handler from another one.
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: Any = None
        self.device: torch.device | None = None
        self.initialized = False
        self.context: Any = None
        self.manifest: dict[str, Any] | None = None

    def initialize(self, context: Any) -> None:
        """Load the archive's TorchScript file, or its model file with a state dict.

        Raises RuntimeError if the weights or the model class are missing.
        """
        properties = context.system_properties
        gpu_id = properties.get("gpu_id")
        use_cuda = torch.cuda.is_available() and gpu_id is not None
        self.device = torch.device(f"cuda:{gpu_id}" if use_cuda else "cpu")
        self.manifest = context.manifest
        model_dir = properties.get("model_dir")
        entry = self.manifest["model"]
        model_path = os.path.join(model_dir, entry["serializedFile"])
        if not os.path.isfile(model_path):
            raise RuntimeError(f"Missing the model file {entry['serializedFile']}")

        model_file = entry.get("modelFile") or ""
        if model_file:
            self.model = _model_class(os.path.join(model_dir, model_file))()
            self.model.load_state_dict(load_torch_file(model_path, self.device))
            self.model.to(self.device)
        else:
            with warnings.catch_warnings():  # see BaseHandler._load_torchscript_model
                warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
                self.model = torch.jit.load(model_path, map_location=self.device)
        self.model.eval()
        self.initialized = True

    def inference(self, data: list[Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The model's output for the stacked tensors of the batch."""
        tensors = []
        for row in data:
            payload = request_payload(row)
            if isinstance(payload, bytes | bytearray | memoryview):
                # A client's bytes are never trusted, whatever the archive's own files are.
                payload = load_torch_file(io.BytesIO(payload), self.device, weights_only=True)
            tensors.append(torch.as_tensor(payload))
        with torch.inference_mode():
            return self.model(torch.stack(tensors).to(self.device), *args, **kwargs)

    def handle(self, data: list[Any], context: Any) -> torch.Tensor:
        """The outputs of the whole batch as one tensor."""
        start_s = time.perf_counter()
        self.context = context
        result = self.inference(data)
        handler_ms = round((time.perf_counter() - start_s) * 1000, 2)
        context.metrics.add_time("HandlerTime", handler_ms, None, "ms")
        return result


def _model_class(path: str) -> type:
    if not os.path.isfile(path):
        raise RuntimeError(f"Missing the model.py file: {os.path.basename(path)}")
    classes = list_classes_from_module(_import_model_file(path))
    if len(classes) != 1:
        raise RuntimeError(f"Expected only one class as model definition. {classes}")
    return classes[0]
