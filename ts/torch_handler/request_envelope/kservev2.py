"""Envelope `kservev2`: the Open Inference Protocol (KServe V2) in JSON."""

from __future__ import annotations

import base64
import math
from typing import Any

from ts.protocol.tensors import flatten
from ts.torch_handler.request_envelope.base import BaseEnvelope, request_body, rows_of
from ts.utils.util import PredictionException

# Names of the protocol for the element types of tensors and arrays; the rest is BYTES.
_DATATYPES = {
    "bool": "BOOL",
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}


class KServev2Envelope(BaseEnvelope):
    """Gives the handler the inputs of all requests of the batch as one list.

    Each input is the protocol's object with `data` nested by `shape`, or, for BYTES, the first
    element alone. The handler returns one result per input.
    """

    def __init__(self, handle_fn: Any) -> None:
        super().__init__(handle_fn)
        # Per batch.
        self._names: list[str] = []
        self._ids: list[str | None] = []

    def parse_input(self, data: list[Any]) -> list[dict[str, Any]]:
        """The inputs of all requests.

        Leaves their names as `context.input_names`, and the id that the first client gave as
        `context.input_request_id`, for the handler to read.
        """
        bodies = [request_body(row) for row in data]
        inputs_per_request = [rows_of(body, "inputs") for body in bodies]
        self._row_counts = [len(inputs) for inputs in inputs_per_request]
        self._ids = [body.get("id") for body in bodies]
        inputs = [_unpack(tensor) for inputs in inputs_per_request for tensor in inputs]
        self._names = [tensor["name"] for tensor in inputs]
        if self.context is not None:
            self.context.input_names = list(self._names)
            self.context.input_request_id = self._ids[0]
        return inputs

    def format_output(self, data: Any) -> list[dict[str, Any]]:
        """Per request, the protocol's response; an output has the name of its input."""
        responses = []
        start = 0
        for index, results in enumerate(self._split_rows(data)):
            end = start + self._row_counts[index]
            responses.append(self._response(index, self._names[start:end], results))
            start = end
        for attribute in ("input_names", "input_request_id"):
            if hasattr(self.context, attribute):
                delattr(self.context, attribute)
        return responses

    def _response(self, index: int, names: list[str], results: Any) -> dict[str, Any]:
        model = ((self.context and self.context.manifest) or {}).get("model", {})
        request_id = self._ids[index]
        if request_id is None and self.context is not None:
            request_id = self.context.get_request_id(index)
        return {
            "id": request_id,
            "model_name": model.get("modelName"),
            "model_version": model.get("modelVersion"),
            "outputs": [
                # A handler may return more results than it got inputs.
                _pack(names[i] if i < len(names) else f"output_{i}", result)
                for i, result in enumerate(results)
            ],
        }


def _unpack(tensor: Any) -> dict[str, Any]:
    """An input as the handler gets it; PredictionException if it is not one of the protocol."""
    for key in ("name", "shape", "datatype", "data"):
        if not isinstance(tensor, dict) or key not in tensor:
            raise PredictionException(f'an input must be an object with "{key}"', 400)
    data = tensor["data"]
    if tensor["datatype"] == "BYTES":
        first = data[0] if isinstance(data, list) and data else data
        return {**tensor, "data": first}
    return {**tensor, "data": _nest(list(flatten(data)), tensor["shape"], tensor["name"])}


def _nest(flat: list[Any], shape: Any, name: str) -> Any:
    if not isinstance(shape, list) or not all(
        type(length) is int and length >= 0 for length in shape
    ):
        raise PredictionException(f'input "{name}": {str(shape)[:100]} is no shape', 400)
    count = math.prod(shape)
    if count != len(flat):
        raise PredictionException(
            f'input "{name}" has {len(flat)} elements, its shape {shape} needs {count}', 400
        )
    if not shape:
        return flat[0]
    for length in reversed(shape[1:]):
        flat = [flat[i : i + length] for i in range(0, len(flat), length)] if length else []
    return flat


def _flatten(data: Any) -> list[Any]:
    if not isinstance(data, list | tuple):
        return [data]
    if not any(isinstance(item, list | tuple) for item in data):
        return list(data)
    return [value for item in data for value in _flatten(item)]


def _pack(name: str, result: Any) -> dict[str, Any]:
    """A handler's result as an output, flattened."""
    dtype = str(getattr(result, "dtype", "")).rsplit(".", 1)[-1]
    if dtype and hasattr(result, "tolist"):
        result = result.tolist()
    data = _flatten(result)
    datatype = _DATATYPES.get(dtype) or _datatype_of(data)
    if datatype == "BYTES":
        data = _as_json_texts(data)
    elif datatype == "FP64":
        data = [float(value) for value in data]
    return {"name": name, "datatype": datatype, "data": data, "shape": [len(data)]}


def _datatype_of(data: list[Any]) -> str:
    kinds = {type(value) for value in data}
    if kinds == {bool}:
        return "BOOL"
    if kinds and kinds <= {bool, int}:
        return "INT64"
    if not kinds or kinds <= {bool, int, float}:
        return "FP64"
    return "BYTES"


def _as_json_texts(data: list[Any]) -> list[Any]:
    """The elements of a BYTES output: bytes as text, base64 if they are not UTF-8.

    One text among numbers makes texts of all; objects stay objects.
    """
    texts = [_as_text(value) if isinstance(value, bytes | bytearray) else value for value in data]
    if any(isinstance(value, str) for value in texts):
        scalars = (str, bool, int, float)
        return [str(value) if isinstance(value, scalars) else value for value in texts]
    return texts


def _as_text(value: bytes | bytearray) -> str:
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")
