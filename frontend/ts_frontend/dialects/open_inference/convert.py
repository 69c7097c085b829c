"""Between the protocol's two wire forms and the core's values: plain functions, no I/O.

A request of either form becomes an `InferCall`: the parts for the worker, and what its client wants
of the answer. The worker's answer comes back as an `InferResponse`, of which `chosen` takes the
outputs that are wanted; their data stays JSON text, or bytes, until somebody needs the elements.

A worker with the envelope of `ts.protocol.tensors` gets tensors as bytes where they came so; for
any other they become JSON here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from ts.protocol import tensors as wire
from ts.protocol.tensors import (
    BINARY_OUTPUT,
    BINARY_OUTPUTS,
    BINARY_SIZE,
    ENVELOPE,
    JSON_LENGTH_HEADER,
    PART_TYPE,
    part_name,
)
from ts_frontend.core.errors import InvalidArgument
from ts_frontend.core.inference import Part, ResponseChunk
from ts_frontend.core.model import Model, TensorSpec
from ts_frontend.dialects.json_body import JSON
from ts_frontend.dialects.open_inference import tensors
from ts_frontend.dialects.open_inference.errors import InvalidAnswer
from ts_frontend.dialects.open_inference.schema import (
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    Parameters,
)

MAX_TENSORS = 1000  # of one request, inputs and outputs each

_REQUEST = msgspec.json.Decoder(InferRequest)
_RESPONSE = msgspec.json.Decoder(InferResponse)
_JSON_LENGTH = JSON_LENGTH_HEADER.lower().encode()


class WantedOutput(NamedTuple):
    name: str
    is_binary: bool


class InferCall(NamedTuple):
    """A request that has passed the checks.

    body:      the protocol's JSON, for the worker.
    outputs:   those asked for by name, in this order; empty: all.
    is_binary: the form of outputs that were not asked for by name.
    raw:       the elements of inputs that have no `data` in the body, with their indices.
    """

    id: str
    body: tensors.Buffer
    outputs: Sequence[WantedOutput]
    is_binary: bool
    raw: Sequence[tuple[int, tensors.Buffer]] = ()

    def parts(self) -> list[Part]:
        """What the worker gets."""
        parts = [Part(b"body", JSON, self.body)]
        for index, elements in self.raw:
            parts.append(Part(part_name(index).encode(), PART_TYPE, elements))
        return parts

    @property
    def takes_answer_as_it_is(self) -> bool:
        return not self.outputs and not self.is_binary


class NamedTensor(Protocol):
    """What the inputs of both wire forms have in common."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...


# REST requests.


def read_http(
    body: bytes | bytearray | memoryview, header_length: bytes | None, declared: Model | None = None
) -> InferCall:
    """A request's body.

    header_length: the header Inference-Header-Content-Length: so many bytes of JSON, then the
        tensors that have no `data`.
    declared:  the model: requests are held to what its archive declares.
    Raises InvalidArgument.
    """
    json_bytes = _json_length(body, header_length)
    text = body if json_bytes == len(body) else memoryview(body)[:json_bytes]
    try:
        request = _REQUEST.decode(text)
        _check_utf8(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"The body is not an Open Inference request: {error}") from None
    except RecursionError:
        raise InvalidArgument("The body is nested too deeply.") from None
    check_names("input", [tensor.name for tensor in request.inputs])
    check_names("output", [output.name for output in request.outputs or ()])
    if declared is not None:
        check_declared(declared, request.inputs, [o.name for o in request.outputs or ()])
    raw = _take_binary(request.inputs, memoryview(body)[json_bytes:], header_length is not None)
    if raw and not takes_raw(declared):
        _expand(request.inputs, raw)
        text, raw = msgspec.json.encode(request), []
    is_binary = _flag(request.parameters, BINARY_OUTPUTS, False)
    wanted = [
        WantedOutput(output.name, _flag(output.parameters, BINARY_OUTPUT, is_binary))
        for output in request.outputs or ()
    ]
    return InferCall(request.id or "", text, wanted, is_binary, raw)


def _check_utf8(text: tensors.Buffer) -> None:
    """The decoder does not look into members that the protocol does not know, and the worker's
    would stumble over them. Raises UnicodeDecodeError.
    """
    text = text.tobytes() if isinstance(text, memoryview) else text
    if not text.isascii():
        text.decode()


def _json_length(body: bytes | bytearray | memoryview, header_length: bytes | None) -> int:
    if header_length is None:
        return len(body)
    digits = header_length.strip()
    if not digits.isdigit() or len(digits) > 18 or int(digits) > len(body):
        raise InvalidArgument(
            "Inference-Header-Content-Length must be the size of the JSON at the start of the "
            f"body, which has {len(body)} bytes."
        )
    return int(digits)


def takes_raw(model: Model | None) -> bool:
    """Whether the model's workers understand elements as bytes."""
    return model is not None and model.envelope == ENVELOPE


def _take_binary(
    inputs: Sequence[InputTensor], blob: memoryview, is_announced: bool
) -> list[tuple[int, memoryview]]:
    """Check each tensor; return those whose elements are in `blob`: index and elements."""
    position = 0
    taken = []
    for index, tensor in enumerate(inputs):
        size = (tensor.parameters or {}).get(BINARY_SIZE)
        if size is None:
            if not tensor.data:
                raise InvalidArgument(f'"{tensor.name}": there is no data')
            tensors.check_json(tensor.name, tensor.datatype, tensor.shape, memoryview(tensor.data))
            continue
        if tensor.data:
            raise InvalidArgument(f'"{tensor.name}": both data and {BINARY_SIZE}')
        if not is_announced:
            raise InvalidArgument(
                f'"{tensor.name}": {BINARY_SIZE} needs the header Inference-Header-Content-Length'
            )
        if type(size) is not int or not 0 <= size <= len(blob) - position:
            raise InvalidArgument(
                f'"{tensor.name}": a {BINARY_SIZE} of {str(size)[:20]} does not fit the '
                f"{len(blob) - position} bytes that are there"
            )
        raw = blob[position : position + size]
        tensors.check_raw(tensor.name, tensor.datatype, tensor.shape, raw)
        taken.append((index, raw))
        position += size
    if position != len(blob):
        raise InvalidArgument(f"{len(blob) - position} bytes of the body belong to no input.")
    return taken


def _expand(inputs: Sequence[InputTensor], raw: Sequence[tuple[int, memoryview]]) -> None:
    """Give inputs that came as bytes their JSON text."""
    for index, elements in raw:
        tensor = inputs[index]
        count = tensors.element_count(tensor.name, tensor.shape)
        values = tensors.from_raw(tensor.name, tensor.datatype, count, elements)
        tensor.data = msgspec.Raw(tensors.to_json(tensor.datatype, values))
        tensor.parameters = {
            key: value for key, value in (tensor.parameters or {}).items() if key != BINARY_SIZE
        } or None


def _flag(parameters: Parameters | None, key: str, default: bool) -> bool:
    value = (parameters or {}).get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidArgument(f"The parameter {key} must be true or false.")
    return value


# Checks of both wire forms.


def check_names(kind: str, names: Sequence[str]) -> None:
    if len(names) > MAX_TENSORS:
        raise InvalidArgument(f"More than {MAX_TENSORS} {kind}s.")
    if len(set(names)) != len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise InvalidArgument(f'The {kind} "{twice}" is there twice.')


def check_declared(model: Model, inputs: Sequence[NamedTensor], outputs: Iterable[str]) -> None:
    """That a request fits what the model's archive declares, as far as it does. Raises
    InvalidArgument.
    """
    config = model.config
    if config.inputs:
        specs = {spec.name: spec for spec in config.inputs}
        for tensor in inputs:
            if tensor.name not in specs:
                raise InvalidArgument(
                    f'The model has no input "{tensor.name}"; its inputs are {_quoted(specs)}.'
                )
            _check_spec(specs.pop(tensor.name), tensor)
        if specs:
            raise InvalidArgument(f"Missing inputs: {_quoted(specs)}.")
    if config.outputs:
        names = [spec.name for spec in config.outputs]
        for name in outputs:
            if name not in names:
                raise InvalidArgument(
                    f'The model has no output "{name}"; its outputs are {_quoted(names)}.'
                )


def _check_spec(spec: TensorSpec, tensor: NamedTensor) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidArgument(
            f'The input "{spec.name}" is {spec.datatype}, not {tensor.datatype[:20]}.'
        )
    is_open = tensor.datatype == "BYTES" and list(tensor.shape) == [-1]
    fits = len(tensor.shape) == len(spec.shape) and all(
        wanted in (-1, length) for wanted, length in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits and not is_open:
        raise InvalidArgument(
            f'The input "{spec.name}" has the shape {list(spec.shape)}, '
            f"not {list(tensor.shape)[: tensors.MAX_DIMENSIONS]}."
        )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


# Answers.


class RawOutput(OutputTensor):
    """An output that came as bytes. It is never encoded as it is."""

    raw: Any = b""


def read_answer(body: bytes, json_length: int | None = None) -> InferResponse:
    """What the model answered. Raises InvalidAnswer.

    json_length: of the JSON at the start of the body, where elements of outputs follow.
    """
    if json_length is None:
        return _read_json(body)
    if json_length > len(body):
        raise InvalidAnswer(f"{JSON_LENGTH_HEADER} is larger than the answer")
    answer = _read_json(body[:json_length])
    blob = memoryview(body)[json_length:]
    position = 0
    for index, output in enumerate(answer.outputs):
        size = (output.parameters or {}).get(BINARY_SIZE)
        if size is None:
            continue
        if output.data or type(size) is not int or not 0 <= size <= len(blob) - position:
            raise InvalidAnswer(f'"{output.name}": a wrong {BINARY_SIZE}')
        raw = blob[position : position + size]
        try:
            tensors.check_raw(output.name, output.datatype, output.shape, raw)
        except InvalidArgument as error:
            raise InvalidAnswer(error.message) from None
        others = {key: value for key, value in (output.parameters or {}).items()}
        del others[BINARY_SIZE]
        answer.outputs[index] = RawOutput(
            output.name, output.datatype, output.shape, others or None, raw=raw
        )
        position += size
    return answer


def json_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The size of the JSON of a binary answer, by its headers; None: it is all JSON."""
    for name, value in headers:
        if name.lower() == _JSON_LENGTH:
            if not value.isdigit() or len(value) > 18:
                raise InvalidAnswer(f"its {JSON_LENGTH_HEADER} is no size")
            return int(value)
    return None


def _read_json(body: bytes) -> InferResponse:
    try:
        return _RESPONSE.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidAnswer(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        # Python's not-a-number and infinity, which JSON has no words for.
        value = json.loads(body)
        for output in value["outputs"]:
            output["data"] = msgspec.Raw(json.dumps(output["data"]).encode())
        return msgspec.convert(value, InferResponse)
    except (ValueError, TypeError, KeyError, RecursionError, msgspec.ValidationError) as error:
        raise InvalidAnswer("it is not JSON with a list of outputs") from error


def chosen(answer: InferResponse, call: InferCall) -> list[tuple[OutputTensor, bool]]:
    """The outputs that the client wants, each with whether it wants it binary.

    Raises InvalidArgument for one that the model did not give.
    """
    if not call.outputs:
        return [(output, call.is_binary) for output in answer.outputs]
    by_name = {output.name: output for output in answer.outputs}
    for wanted in call.outputs:
        if wanted.name not in by_name:
            raise InvalidArgument(
                f'The model gave no output "{wanted.name}"; it gave {_quoted(by_name)}.'
            )
    return [(by_name[wanted.name], wanted.is_binary) for wanted in call.outputs]


def elements(output: OutputTensor) -> list[Any]:
    """The elements of an output, flat, as many as its shape says. Raises InvalidAnswer."""
    if isinstance(output, RawOutput):
        return list(wire.unpack(output.datatype, math.prod(output.shape), output.raw))
    try:
        tensors.datatype_of(output.name, output.datatype)
        expected = tensors.element_count(output.name, output.shape)
        values = list(wire.flatten(tensors.decode(output.name, memoryview(output.data))))
    except InvalidArgument as error:
        raise InvalidAnswer(error.message) from None
    if len(values) != expected:
        raise InvalidAnswer(
            f'"{output.name}": the shape {output.shape} stands for {expected} elements, '
            f"data has {len(values)}"
        )
    return values


def raw_elements(output: OutputTensor) -> tensors.Buffer:
    """The elements of an output in their raw form. Raises InvalidAnswer."""
    if isinstance(output, RawOutput):
        raw: memoryview = output.raw
        return raw
    values = elements(output)
    try:
        return tensors.to_raw(output.datatype, values)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidAnswer(f'"{output.name}" is not {output.datatype}: {error}') from None
    except Exception as error:
        # struct.error derives from Exception alone.
        raise InvalidAnswer(f'"{output.name}" is not {output.datatype}: {error}') from error


def write_http(answer: InferResponse, call: InferCall, model: Model) -> tuple[bytes, int | None]:
    """The body of a REST answer, and the size of the JSON at its start if bytes follow it.

    Raises InvalidArgument, InvalidAnswer.
    """
    blobs = []
    outputs = []
    for output, is_binary in chosen(answer, call):
        if is_binary:
            raw = raw_elements(output)
            blobs.append(raw)
            parameters = {**(output.parameters or {}), BINARY_SIZE: len(raw)}
            output = OutputTensor(output.name, output.datatype, output.shape, parameters)
        elif isinstance(output, RawOutput):
            output = _as_json(output)
        outputs.append(output)
    head = msgspec.json.encode(
        InferResponse(
            outputs,
            model_name=answer.model_name or model.id.name,
            model_version=answer.model_version or model.id.version,
            id=answer.id or call.id or None,
            parameters=answer.parameters,
        )
    )
    if not blobs:
        return head, None
    return b"".join([head, *blobs]), len(head)


def _as_json(output: RawOutput) -> OutputTensor:
    """An output that came as bytes although its client wants JSON."""
    values = elements(output)
    if output.datatype == "BYTES":
        # JSON has no bytes: what is no text is written as if it were Latin-1.
        text = msgspec.json.encode([_text(value) for value in values])
    else:
        text = tensors.to_json(output.datatype, values)
    return OutputTensor(
        output.name, output.datatype, output.shape, output.parameters, msgspec.Raw(text)
    )


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def joined(chunks: Sequence[ResponseChunk]) -> bytes:
    return b"".join(bytes(chunk.body) for chunk in chunks)
