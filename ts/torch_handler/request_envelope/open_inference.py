"""Envelope `open_inference`: tensors in, tensors out. The one that is used where the server speaks
the Open Inference Protocol and `service_envelope` names no other.

What a handler gets for a request of the protocol depends on who wrote it:

    model-config.yaml says `tensorInputs: torch` (or `numpy`)
        One row per request, input name -> tensor (BYTES: a flat list of bytes). Inputs that came as
        bytes are not copied. It returns, per request, a tensor or a dictionary of output name ->
        tensor; lists, numbers and text become tensors too.
    its `preprocess` is that of a default handler (image_classifier, ...)
        One row per index of the only input's first dimension, as if each had come as a request of
        its own: an image, a text. The rows' results become one output.
    else
        The protocol's JSON under `body`, as a worker of TorchServe gives it; what the handler
        answers goes out as it is.

The outputs' names are those that model-config.yaml declares, else `output_0`. Requests that are not
of the protocol pass through untouched, and so do answers with a status of their own.
"""

from __future__ import annotations

import base64
import inspect
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

from ts.handler_utils import tensors
from ts.protocol.tensors import (
    BINARY_CONTENT_TYPE,
    BINARY_OUTPUT,
    BINARY_OUTPUTS,
    BINARY_SIZE,
    ELEMENTS,
    JSON_LENGTH_HEADER,
    flatten,
    part_name,
    unpack,
)
from ts.torch_handler.request_envelope.base import request_body
from ts.utils.util import PredictionException

FORM_KEY = "tensorInputs"

_RAW_READERS = {"torch": tensors.torch_tensor, "numpy": tensors.numpy_array}
_VALUE_READERS = {"torch": tensors.torch_from_values, "numpy": tensors.numpy_from_values}


class OpenInferenceEnvelope:
    """Keeps nothing between calls: asynchronous handlers work on many batches at once."""

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        self._handle_fn = handle_fn
        self._is_default_handler = _has_default_preprocess(handle_fn)

    def handle(self, data: Any, context: Any) -> Any:
        """The handler's answers to the batch, or an awaitable of them if it is asynchronous."""
        requests = [_infer_request(row) for row in data or ()]
        if all(asked is None for asked in requests):
            return self._handle_fn(data, context)
        form = _form(context)
        if form is None and not self._is_default_handler:
            rows = [_as_json_row(row, asked) for row, asked in zip(data, requests, strict=True)]
            return self._handle_fn(rows, context)
        rows, counts = [], []
        for row, asked in zip(data, requests, strict=True):
            its_rows = [row]
            if asked is not None:
                its_rows = _split(row, asked) if form is None else [_typed_row(row, asked, form)]
            rows += its_rows
            counts.append(len(its_rows))
        context.infer_requests = requests
        results = self._handle_fn(rows, context)
        if inspect.isawaitable(results):
            return _answered_later(results, requests, counts, form, context)
        return _answered(results, requests, counts, form, context)


async def _answered_later(
    results: Awaitable[Any],
    requests: list[Any],
    counts: list[int],
    form: str | None,
    context: Any,
) -> Any:
    return _answered(await results, requests, counts, form, context)


def _has_default_preprocess(handle_fn: Callable[[Any, Any], Any]) -> bool:
    """Whether rows are read by a default handler that takes one value per row."""
    preprocess = getattr(getattr(handle_fn, "__self__", None), "preprocess", None)
    module = getattr(inspect.unwrap(preprocess), "__module__", "") if preprocess else ""
    return module.startswith("ts.torch_handler.") and not module.endswith(".base_handler")


def _form(context: Any) -> str | None:
    config = getattr(context, "model_yaml_config", None) or {}
    form = config.get(FORM_KEY)
    if form is not None and form not in _RAW_READERS:
        raise PredictionException(
            f"{FORM_KEY} in the model's configuration must be torch or numpy, not {form!r}", 500
        )
    return form


# Requests.


def _infer_request(row: Any) -> dict[str, Any] | None:
    """The protocol's JSON in a row; None: the row is of another protocol."""
    body = row.get("body") if isinstance(row, dict) else None
    if not isinstance(body, dict):
        # With decode_input_request=false it is still text.
        if not isinstance(row, dict) or not any(map(_is_part_name, row)):
            return None
        body = request_body({"body": body})
    inputs = body.get("inputs") if isinstance(body, dict) else None
    if not isinstance(inputs, list):
        return None
    return body if all(_is_tensor(tensor) for tensor in inputs) else None


def _is_part_name(name: Any) -> bool:
    return isinstance(name, str) and name.startswith("tensor:")


def _is_tensor(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and value.get("datatype") in ELEMENTS
        and isinstance(value.get("shape"), list)
        and all(type(length) is int and length >= -1 for length in value["shape"])
    )


def _typed_row(row: dict[str, Any], asked: dict[str, Any], form: str) -> dict[str, Any]:
    """Input name -> tensor."""
    typed = {}
    for index, tensor in enumerate(asked["inputs"]):
        raw = row.get(part_name(index))
        try:
            if raw is not None:
                value = _RAW_READERS[form](tensor["datatype"], tensor["shape"], raw)
            elif tensor["datatype"] == "BYTES":
                value = [_as_bytes(item) for item in _elements(tensor)]
            else:
                value = _VALUE_READERS[form](tensor["datatype"], tensor["shape"], _elements(tensor))
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            raise PredictionException(f'input "{tensor["name"]}": {error}', 400) from error
        typed[tensor["name"]] = value
    return typed


def _split(row: dict[str, Any], asked: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per index of the first dimension."""
    if len(asked["inputs"]) != 1:
        names = ", ".join(tensor["name"] for tensor in asked["inputs"])
        raise PredictionException(f"the model takes one input, not {names or 'none'}", 400)
    (tensor,) = asked["inputs"]
    if tensor["datatype"] == "BYTES":
        raw = row.get(part_name(0))
        elements = _elements(tensor) if raw is None else _unpacked(tensor, raw)
        return [{"data": element} for element in elements]
    value = _typed_row(row, asked, "torch")[tensor["name"]]
    return [{"data": item} for item in (value if value.dim() else [value])]


def _as_json_row(row: Any, asked: dict[str, Any] | None) -> Any:
    """The row as TorchServe gives it: all elements in the JSON, those of BYTES as base64."""
    names = [] if asked is None else _part_names(asked)
    if asked is None or not any(name in row for name in names):
        return row
    inputs = []
    for index, tensor in enumerate(asked["inputs"]):
        raw = row.get(part_name(index))
        if raw is None:
            inputs.append(tensor)
            continue
        values = list(_unpacked(tensor, raw))
        if tensor["datatype"] == "BYTES":
            values = [base64.b64encode(value).decode() for value in values]
        rest = {key: value for key, value in tensor.items() if key != "parameters"}
        parameters = dict(tensor.get("parameters") or {})
        parameters.pop(BINARY_SIZE, None)
        if parameters:
            rest["parameters"] = parameters
        inputs.append({**rest, "data": values})
    others = {key: value for key, value in row.items() if key not in names}
    return {**others, "body": {**asked, "inputs": inputs}}


def _part_names(asked: dict[str, Any]) -> list[str]:
    return [part_name(index) for index in range(len(asked["inputs"]))]


def _unpacked(tensor: dict[str, Any], raw: bytearray) -> Any:
    try:
        return unpack(tensor["datatype"], math.prod(tensor["shape"]), raw)
    except ValueError as error:
        raise PredictionException(f'input "{tensor["name"]}": {error}', 400) from error


def _elements(tensor: dict[str, Any]) -> list[Any]:
    """The elements of JSON data, nested or flat, as a flat list."""
    return list(flatten(tensor.get("data")))


def _as_bytes(item: Any) -> bytes:
    return item.encode() if isinstance(item, str) else json.dumps(item).encode()


# Answers.


def _answered(
    results: Any, requests: list[Any], counts: list[int], form: str | None, context: Any
) -> Any:
    """The handler's results as one answer per request."""
    if not isinstance(results, list) or len(results) != sum(counts):
        if len(counts) == 1 and isinstance(results, list) and form is None:
            counts = [len(results)]
        else:
            return results  # the worker says what is wrong with it
    answers: list[Any] = []
    start = 0
    for index, (asked, count) in enumerate(zip(requests, counts, strict=True)):
        its_results = results[start : start + count]
        start += count
        if asked is None:
            answers += its_results
        elif form is None:
            answers.append(_answer(index, asked, tensors.stacked(its_results), context, False))
        else:
            answers.append(_answer(index, asked, its_results[0], context, True))
    return answers


def _answer(index: int, asked: dict[str, Any], result: Any, context: Any, by_name: bool) -> Any:
    """One answer of the protocol, in the form that its client wants.

    by_name: a dictionary is one of outputs.
    """
    if context.get_response_status(index)[0] != 200:
        return result
    if isinstance(result, dict) and isinstance(result.get("outputs"), list):
        return result  # made by the handler itself
    declared = _declared_outputs(context)
    if not (by_name and isinstance(result, dict)):
        result = {declared[0]["name"] if declared else "output_0": result}
    datatypes = {output["name"]: output.get("datatype") for output in declared}
    default, chosen = _wanted_forms(asked)
    outputs, blobs = [], []
    for name, value in result.items():
        try:
            encoded = tensors.encode(value, datatypes.get(name))
        except (ValueError, TypeError) as error:
            raise PredictionException(f'the output "{name}" is no tensor: {error}', 500) from error
        output: dict[str, Any] = {
            "name": name,
            "datatype": encoded.datatype,
            "shape": encoded.shape,
        }
        if chosen.get(name, default):
            raw = encoded.raw()
            output["parameters"] = {BINARY_SIZE: len(raw)}
            blobs.append(raw)
        else:
            output["data"] = encoded.values()
        outputs.append(output)
    manifest = (context.manifest or {}).get("model") or {}
    head = json.dumps(
        {
            "id": asked.get("id") or context.get_request_id(index),
            "model_name": context.model_name,
            "model_version": manifest.get("modelVersion"),
            "outputs": outputs,
        }
    ).encode()
    if not blobs:
        context.set_response_content_type(index, "application/json")
        return head
    context.set_response_content_type(index, BINARY_CONTENT_TYPE)
    context.set_response_header(index, JSON_LENGTH_HEADER, str(len(head)))
    return b"".join([head, *blobs])


def _declared_outputs(context: Any) -> list[dict[str, Any]]:
    declared = (getattr(context, "model_yaml_config", None) or {}).get("outputs")
    if not isinstance(declared, list):
        return []
    return [output for output in declared if isinstance(output, dict) and "name" in output]


def _wanted_forms(asked: dict[str, Any]) -> tuple[bool, dict[str, bool]]:
    """Whether outputs are wanted as bytes: by default, and by name."""
    default = bool((asked.get("parameters") or {}).get(BINARY_OUTPUTS, False))
    chosen = {
        output["name"]: bool((output.get("parameters") or {}).get(BINARY_OUTPUT, default))
        for output in asked.get("outputs") or ()
        if isinstance(output, dict) and "name" in output
    }
    return default, chosen
