"""Which tensors a model takes and gives: what its archive declares, else what its handler says."""

from __future__ import annotations

import asyncio
import uuid
import weakref
from collections.abc import Sequence
from typing import Any

import msgspec

from ts_frontend.control_plane import parse_metadata
from ts_frontend.core.errors import ErrorKind, ServingError
from ts_frontend.core.model import Model, TensorSpec
from ts_frontend.data_plane import DataPlane
from ts_frontend.dialects.open_inference.convert import joined
from ts_frontend.dialects.open_inference.schema import TensorMetadata

DESCRIBE_TIMEOUT_S = 10.0  # a busy worker does not keep a client from the rest of the metadata

Tensors = tuple[list[TensorMetadata], list[TensorMetadata]]


class TensorCatalog:
    """Asks a handler once and remembers what it said for the model's life."""

    def __init__(self, data: DataPlane) -> None:
        self._data = data
        self._described: weakref.WeakKeyDictionary[Model, Tensors] = weakref.WeakKeyDictionary()

    async def tensors(self, model: Model) -> Tensors:
        """Inputs and outputs, empty where nobody says."""
        config = model.config
        if config.inputs or config.outputs:
            return _metadata(config.inputs), _metadata(config.outputs)
        known = self._described.get(model)
        if known is None:
            known = await self._describe(model)
        return known

    async def _describe(self, model: Model) -> Tensors:
        try:
            async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
                stream = self._data.describe(model, str(uuid.uuid4()).encode())
                chunks = await stream.wait_complete()
        except TimeoutError:
            return [], []
        except ServingError as error:
            if error.kind is not ErrorKind.MODEL_ERROR:
                return [], []  # no worker now; the next client may have more luck
            described: dict[str, Any] = {}
        else:
            described = parse_metadata(joined(chunks))
        tensors = _listed(described.get("inputs")), _listed(described.get("outputs"))
        self._described[model] = tensors
        return tensors


def _metadata(specs: Sequence[TensorSpec]) -> list[TensorMetadata]:
    return [TensorMetadata(spec.name, spec.datatype, list(spec.shape)) for spec in specs]


def _listed(value: Any) -> list[TensorMetadata]:
    try:
        return msgspec.convert(value, list[TensorMetadata])
    except msgspec.ValidationError:
        return []
