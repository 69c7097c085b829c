"""The manifest's `model` entry."""

from __future__ import annotations

import json
import os
from typing import Any


class Model:
    """Files are given by any path and named by their last component, as they lie in the archive."""

    def __init__(
        self,
        model_name: str,
        serialized_file: str | None,
        handler: str | None,
        model_file: str | None = None,
        model_version: str | None = None,
        extensions: Any = None,
        requirements_file: str | None = None,
        config_file: str | None = None,
    ) -> None:
        self.model_name = model_name
        self.serialized_file = _base_name(serialized_file)
        # `dir/handler.py:function` keeps its function: the server cuts at the colon.
        self.handler = os.path.basename(handler) if handler is not None else None
        self.model_file = _base_name(model_file)
        self.model_version = model_version
        self.extensions = extensions
        self.requirements_file = _base_name(requirements_file)
        self.config_file = _base_name(config_file)
        self.model_dict = self.__to_dict__()

    def __to_dict__(self) -> dict[str, Any]:
        entry = {
            "modelName": self.model_name,
            "serializedFile": self.serialized_file,
            "handler": self.handler,
            "modelFile": self.model_file,
            "modelVersion": self.model_version,
            "extensions": self.extensions,
            "requirementsFile": self.requirements_file,
            "configFile": self.config_file,
        }
        # A handler is written as given, even an empty one: the registration may name it.
        required = {"modelName", "handler"} if self.handler is not None else {"modelName"}
        return {key: value for key, value in entry.items() if value or key in required}

    def __str__(self) -> str:
        return json.dumps(self.model_dict)

    __repr__ = __str__


def _base_name(path: str | None) -> str | None:
    return os.path.basename(path) if path else None
