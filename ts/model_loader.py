"""From a model's folder to a started handler.

The handler's text names a module in the archive, or else one of `ts.torch_handler`, and perhaps a
function in it; without one, the module's only class is instantiated.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ts.context import Context
from ts.generators import has_streams, run_to_end
from ts.service import Service
from ts.utils.util import list_classes_from_module

logger = logging.getLogger(__name__)

EntryPoint = Callable[[Any, Context], Any]
Initialize = Callable[[Context], Any]

MANIFEST_FILE = os.path.join("MAR-INF", "MANIFEST.json")
DEFAULT_FUNCTION = "handle"


class BadHandlerError(ValueError):
    """The handler's module was imported and has nothing that could be called."""


class ModelLoader(ABC):
    """Makes a Service of a model's folder."""

    @abstractmethod
    def load(
        self,
        model_name: str,
        model_dir: str,
        handler: str | None = None,
        gpu_id: int | None = None,
        batch_size: int | None = None,
        envelope: str | None = None,
        limit_max_image_pixels: bool = True,
        metrics_cache: Any = None,
    ) -> Service:
        """The started model; raises what its handler raises."""


class ModelLoaderFactory:
    """A name that scripts import."""

    @staticmethod
    def get_model_loader() -> ModelLoader:
        return TsModelLoader()


class TsModelLoader(ModelLoader):
    """Loads archives of TorchServe's format."""

    def load(
        self,
        model_name: str,
        model_dir: str,
        handler: str | None = None,
        gpu_id: int | None = None,
        batch_size: int | None = None,
        envelope: str | None = None,
        limit_max_image_pixels: bool = True,
        metrics_cache: Any = None,
    ) -> Service:
        """The started model.

        Raises ModuleNotFoundError, chained to the real reason, if the handler cannot be imported;
        BadHandlerError if its module has no usable entry point; and what the handler raises.
        """
        if metrics_cache is not None:
            # What a handler emits while it starts belongs to no request, but needs a name.
            metrics_cache.set_request_ids(str(uuid.uuid4()))
        manifest = read_manifest(model_dir)
        module, function_name = import_handler(handler or "", model_dir)
        if hasattr(module, function_name):
            entry_point, initialize = function_entry_point(module, function_name)
        else:
            entry_point, initialize = class_entry_point(module)
        if envelope:
            entry_point = load_envelope(envelope)(entry_point).handle
        service = Service(
            model_name,
            model_dir,
            manifest,
            entry_point,
            gpu_id,
            batch_size,
            limit_max_image_pixels,
            metrics_cache,
        )
        initialize(service.context)
        return service


def read_manifest(model_dir: str) -> dict[str, Any] | None:
    """The archive's manifest; None for a folder without one."""
    path = os.path.join(model_dir, MANIFEST_FILE)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        manifest: dict[str, Any] = json.load(file)
    return manifest


def import_handler(handler: str, model_dir: str) -> tuple[ModuleType, str]:
    """The handler's module, and the name of the function to look for in it.

    A file of the archive wins over a default handler of the same name.
    """
    module_part, _, function_name = handler.partition(":")
    module_name = module_part.removesuffix(".py").rpartition("/")[2]
    # The frontend has put the folder on the path already; a worker started by hand has not.
    if model_dir and model_dir not in sys.path:
        sys.path.append(model_dir)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        logger.debug("No handler %s in the archive: %s", module_name, error)
        name = f"ts.torch_handler.{handler}"
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if not f"{name}.".startswith(f"{missing.name}."):  # something that it imports
                raise
            raise error from None  # there is no default handler of that name: this is the reason
    return module, function_name or DEFAULT_FUNCTION


def function_entry_point(module: ModuleType, name: str) -> tuple[EntryPoint, Initialize]:
    """A function that is called without data once, when the model starts."""
    entry_point = getattr(module, name)

    def initialize(context: Context) -> None:
        started = entry_point(None, context)
        if has_streams(started):
            run_to_end(started)

    return entry_point, initialize


def class_entry_point(module: ModuleType) -> tuple[EntryPoint, Initialize]:
    """The `handle` and `initialize` of an object of the module's only class."""
    classes = list_classes_from_module(module)
    if len(classes) != 1:
        raise BadHandlerError(
            "Expected only one class in custom service code or a function entry point "
            f"{[found.__name__ for found in classes]}"
        )
    handler = classes[0]()
    # Asked of the object, because `handle` may be an attribute: MicroBatching is used that way.
    if not hasattr(handler, "handle"):
        raise BadHandlerError(f"Expect handle method in class {classes[0]}")
    return handler.handle, handler.initialize


def load_envelope(name: str) -> type:
    module = importlib.import_module(f"ts.torch_handler.request_envelope.{name}")
    envelope: type = list_classes_from_module(module)[0]
    return envelope
