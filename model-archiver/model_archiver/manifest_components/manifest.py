"""The manifest, `MAR-INF/MANIFEST.json`; its reader is the server's `archive.manifest`."""

from __future__ import annotations

import json
from datetime import datetime
from enum import Enum
from typing import Any

from model_archiver.manifest_components.model import Model
from model_archiver.version import __version__


class RuntimeType(Enum):
    """What runs the handler."""

    PYTHON = "python"
    PYTHON3 = "python3"
    LSP = "LSP"  # a compiled handler


class Manifest:
    def __init__(self, runtime: RuntimeType | str, model: Model) -> None:
        """Raises ValueError for a runtime that is none."""
        self.creation_time = datetime.now().strftime("%d/%m/%Y %H:%M:%S")  # local time
        self.runtime = RuntimeType(runtime)
        self.model = model
        self.archiver_version = __version__
        self.manifest_dict = self.__to_dict__()

    def __to_dict__(self) -> dict[str, Any]:
        return {
            "createdOn": self.creation_time,
            "runtime": self.runtime.value,
            "model": self.model.model_dict,
            "archiverVersion": self.archiver_version,
        }

    def __str__(self) -> str:
        return json.dumps(self.manifest_dict, indent=2)

    __repr__ = __str__
