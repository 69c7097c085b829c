"""Small helpers that handlers import (contract, handler API sections 8 and 9)."""

from __future__ import annotations

import enum
import functools
import inspect
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import yaml

logger = logging.getLogger(__name__)

# HTML tags, and entities by name or number. Neither part runs past the next opening character, so
# a text full of them costs no more than another.
CLEANUP_REGEX = re.compile("<[^<>]*>|&([a-zA-Z0-9]+|#[0-9]{1,6}|#x[0-9a-fA-F]{1,6});")


class PT2Backend(str, enum.Enum):
    """The backends that `torch.compile` may be asked for in a model's configuration."""

    EAGER = "eager"
    AOT_EAGER = "aot_eager"
    INDUCTOR = "inductor"
    NVFUSER = "nvfuser"
    AOT_NVFUSER = "aot_nvfuser"
    AOT_CUDAGRAPHS = "aot_cudagraphs"
    OFI = "ofi"
    FX2TRT = "fx2trt"
    ONNXRT = "onnxrt"
    IPEX = "ipex"
    TORCHXLA_TRACE_ONCE = "torchxla_trace_once"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    HPU_BACKEND = "hpu_backend"


_PT2_BACKENDS = frozenset(backend.value for backend in PT2Backend)


class PredictionException(Exception):
    """Raised by a handler to fail its whole batch with a status and a message of its own."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        self.message = message
        self.error_code = error_code
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


def check_valid_pt2_backend(backend: str) -> bool:
    """Whether `backend` is one of PT2Backend; logs a warning if it is not."""
    if backend in _PT2_BACKENDS:
        return True
    logger.warning("%s is not one of the known torch.compile backends: %s", backend, _PT2_BACKENDS)
    return False


def get_yaml_config(yaml_file_path: str | os.PathLike[str]) -> Any:
    with open(yaml_file_path, encoding="utf-8") as file:
        return yaml.safe_load(file)


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """The classes that `module` itself defines, by name; only subclasses of `parent_class`."""
    classes = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__
    ]
    if parent_class is None:
        return classes
    return [member for member in classes if issubclass(member, parent_class)]


def load_label_mapping(mapping_file_path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """index_to_name.json as class index (text) -> label, None where there is no such file.

    Raises Exception if it is not a JSON object of names, or of lists of names.
    """
    if not os.path.isfile(mapping_file_path):
        logger.warning(
            "Missing the %s file. Inference output will not include class name.",
            "index_to_name.json",
        )
        return None
    with open(mapping_file_path, encoding="utf-8") as file:
        mapping = json.load(file)
    if not isinstance(mapping, dict):
        raise Exception('index_to_name mapping should be in "class":"label" json format')
    # Old object detectors' files: a list under this name.
    names = mapping.get("object_type_names")
    if isinstance(names, list):
        mapping = {str(index): name for index, name in enumerate(names)}
    labels = {}
    for key, value in mapping.items():
        label = value[-1] if isinstance(value, list) and value else value
        if not isinstance(label, str):
            raise Exception("labels in index_to_name must be either str or [str]")
        labels[key] = label
    return labels


def map_class_to_label(
    probs: Iterable[Sequence[float]],
    mapping: dict[str, str] | None = None,
    lbl_classes: Sequence[Sequence[int]] | None = None,
) -> list[dict[str, float]]:
    """One dict of label -> probability for each row of `probs`, in the given order.

    lbl_classes: the class of each probability; 0, 1, 2 ... if not given.
    Raises KeyError for a class without a label.
    """
    rows = list(probs)
    classes = lbl_classes if lbl_classes is not None else [range(len(row)) for row in rows]
    return [
        {
            (str(index) if mapping is None else mapping[str(index)]): prob
            for index, prob in zip(row_classes, row, strict=False)
        }
        for row_classes, row in zip(classes, rows, strict=False)
    ]


def deprecated(
    version: str, replacement: str = "", klass: type[Warning] = PendingDeprecationWarning
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a function as going away in `version`, in favour of `replacement`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        text = f"{function.__name__} is deprecated and will be removed in version {version}"
        if replacement:
            text += f"; use {replacement}"

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            warnings.warn(text, klass, stacklevel=2)
            return function(*args, **kwargs)

        return call

    return decorate
