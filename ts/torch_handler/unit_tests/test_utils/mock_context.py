"""A context for trying a handler without a server."""

from __future__ import annotations

import uuid
from typing import Any

import torch

from ts.metrics.metrics_store import MetricsStore
from ts.utils.util import get_yaml_config


class MockContext:
    """As much of a context as handlers need to load a model and run a batch.

    Set `explain` to make `get_request_header` answer for an explanation. There are no request ids
    and no response methods.
    """

    def __init__(
        self,
        model_pt_file: str | None = "model.pt",
        model_dir: str = "ts/torch_handler/unit_tests/models/tmp",
        model_file: str | None = "model.py",
        gpu_id: str | None = "0",
        model_name: str = "mnist",
        model_yaml_config_file: str | None = None,
    ) -> None:
        self.manifest: dict[str, Any] = {"model": {}}
        if model_pt_file:
            self.manifest["model"]["serializedFile"] = model_pt_file
        if model_file:
            self.manifest["model"]["modelFile"] = model_file
        self.system_properties: dict[str, Any] = {"model_dir": model_dir}
        if torch.cuda.is_available() and gpu_id is not None:
            self.system_properties["gpu_id"] = gpu_id
        self.explain = False
        self.metrics = MetricsStore(str(uuid.uuid4()), model_name)
        self.model_yaml_config = (
            get_yaml_config(f"{model_dir}/{model_yaml_config_file}")
            if model_yaml_config_file
            else {}
        )

    def get_request_header(self, idx: Any, exp: Any) -> bool:
        """True for a non-empty index and key while `explain` is set, otherwise False."""
        return bool(idx and exp and self.explain)
