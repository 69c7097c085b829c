"""The gRPC form of requests and answers: see `convert`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ts.protocol.tensors import BINARY_OUTPUTS
from ts_frontend.core.errors import InvalidArgument
from ts_frontend.core.model import Model
from ts_frontend.dialects.open_inference import tensors
from ts_frontend.dialects.open_inference.convert import (
    InferCall,
    WantedOutput,
    check_declared,
    check_names,
    chosen,
    elements,
    raw_elements,
    takes_raw,
)
from ts_frontend.dialects.open_inference.errors import InvalidAnswer
from ts_frontend.dialects.open_inference.schema import (
    DATATYPES,
    NO_DATA,
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    Parameters,
    RequestedOutput,
)
from ts_frontend.grpc.stubs.open_inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
)

_BITS = {"INT8": 8, "INT16": 16, "UINT8": 8, "UINT16": 16}


def read_message(request: ModelInferRequest, declared: Model | None = None) -> InferCall:
    """The call that a message stands for. Raises InvalidArgument."""
    raw = request.raw_input_contents
    check_names("input", [tensor.name for tensor in request.inputs])
    check_names("output", [output.name for output in request.outputs])
    if declared is not None:
        check_declared(declared, request.inputs, [output.name for output in request.outputs])
    if raw and len(raw) != len(request.inputs):
        raise InvalidArgument(
            f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs: there must be one "
            "for each, or none."
        )
    is_raw = takes_raw(declared)
    inputs, parts = [], []
    for index, tensor in enumerate(request.inputs):
        read = _read_raw if is_raw else _read_input
        its_input, elements = read(tensor, raw[index] if raw else None)
        inputs.append(its_input)
        if elements is not None:
            parts.append((index, elements))
    parameters = _read_parameters(request.parameters)
    if is_raw:
        # Whatever the client gets, bytes are what is least work to make it of.
        parameters = {**(parameters or {}), BINARY_OUTPUTS: True}
    body = msgspec.json.encode(
        InferRequest(
            inputs,
            # Also where it is empty, as TorchServe sends it.
            id=request.id,
            model_name=request.model_name,
            parameters=parameters,
            outputs=[
                RequestedOutput(output.name, _read_parameters(output.parameters))
                for output in request.outputs
            ]
            or None,
        )
    )
    wanted = [WantedOutput(output.name, bool(raw)) for output in request.outputs]
    return InferCall(request.id, body, wanted, bool(raw), parts)


def _read_input(
    tensor: ModelInferRequest.InferInputTensor, raw: bytes | None
) -> tuple[InputTensor, None]:
    """The input as JSON."""
    name, datatype = tensor.name, tensor.datatype
    values: Sequence[Any]
    if raw is None:
        values = _contents(tensor)
    else:
        _check_only_raw(tensor)
        values = tensors.from_raw(name, datatype, tensors.element_count(name, tensor.shape), raw)
    data = msgspec.Raw(tensors.to_json(datatype, values))
    return _described(tensor, data), None


def _read_raw(
    tensor: ModelInferRequest.InferInputTensor, raw: bytes | None
) -> tuple[InputTensor, bytes]:
    """The input without its elements, and those."""
    name, datatype = tensor.name, tensor.datatype
    if raw is None:
        raw = tensors.to_raw(datatype, _contents(tensor))
    else:
        _check_only_raw(tensor)
        tensors.check_raw(name, datatype, tensor.shape, raw)
    return _described(tensor, NO_DATA), raw


def _described(tensor: ModelInferRequest.InferInputTensor, data: msgspec.Raw) -> InputTensor:
    return InputTensor(
        tensor.name,
        list(tensor.shape),
        tensor.datatype,
        _read_parameters(tensor.parameters),
        data,
    )


def _check_only_raw(tensor: ModelInferRequest.InferInputTensor) -> None:
    if tensor.contents.ListFields():
        raise InvalidArgument(f'"{tensor.name}": both contents and raw_input_contents')


def _contents(tensor: ModelInferRequest.InferInputTensor) -> list[Any]:
    """The elements in the fields of the message. Raises InvalidArgument."""
    name, datatype = tensor.name, tensor.datatype
    field = tensors.datatype_of(name, datatype).contents
    count = tensors.element_count(name, tensor.shape)
    used = [other.name for other, _ in tensor.contents.ListFields()]
    if not field:
        raise InvalidArgument(f'"{name}": {datatype} travels as raw_input_contents only')
    if used not in ([], [field]):
        raise InvalidArgument(f'"{name}": {datatype} belongs into {field}, not {used}')
    values = list(getattr(tensor.contents, field))
    if len(values) != count:
        raise InvalidArgument(
            f'"{name}": the shape {list(tensor.shape)} stands for {count} elements, '
            f"{field} has {len(values)}"
        )
    _check_range(name, datatype, values)
    return values


def _check_range(name: str, datatype: str, values: list[Any]) -> None:
    """The field of the small integers is wider than they are."""
    bits = _BITS.get(datatype)
    if bits is None or not values:
        return
    low = 0 if datatype.startswith("U") else -(2 ** (bits - 1))
    high = low + 2**bits - 1
    if min(values) < low or max(values) > high:
        raise InvalidArgument(f'"{name}": the values of {datatype} are from {low} to {high}')


def _read_parameters(parameters: Mapping[str, InferParameter]) -> Parameters | None:
    values: Parameters = {}
    for key, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[key] = None if choice is None else getattr(parameter, choice)
    return values or None


def write_message(answer: InferResponse, call: InferCall, model: Model) -> ModelInferResponse:
    """The answer as a message, all outputs raw if the request's inputs were, or if one has no
    other form.

    Raises InvalidArgument, InvalidAnswer.
    """
    outputs = [output for output, _ in chosen(answer, call)]
    response = ModelInferResponse(
        model_name=answer.model_name or model.id.name,
        model_version=answer.model_version or model.id.version,
        id=answer.id or call.id,
    )
    _write_parameters(response.parameters, answer.parameters)
    is_raw = call.is_binary or any(
        output.datatype in DATATYPES and not DATATYPES[output.datatype].contents
        for output in outputs
    )
    for output in outputs:
        tensor = response.outputs.add(
            name=output.name, datatype=output.datatype, shape=_shape(output)
        )
        _write_parameters(tensor.parameters, output.parameters)
        if is_raw:
            response.raw_output_contents.append(bytes(raw_elements(output)))
        else:
            _write_contents(tensor.contents, output)
    return response


def _shape(output: OutputTensor) -> list[int]:
    if not all(0 <= length <= tensors.MAX_LENGTH for length in output.shape):
        raise InvalidAnswer(f'"{output.name}": the shape {output.shape} has no elements')
    return output.shape


def _write_contents(contents: InferTensorContents, output: OutputTensor) -> None:
    values = elements(output)
    field = DATATYPES[output.datatype].contents
    if output.datatype == "BYTES":
        values = [tensors.as_bytes(value) for value in values]
    elif output.datatype == "BOOL":
        values = [bool(value) for value in values]
    try:
        getattr(contents, field).extend(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidAnswer(f'"{output.name}" is not {output.datatype}: {error}') from None


def _write_parameters(target: Any, parameters: Mapping[str, Any] | None) -> None:
    """What the protocol has a form for; the rest is the handler's own affair and left out."""
    for key, value in (parameters or {}).items():
        if isinstance(value, bool):
            target[key].bool_param = value
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            target[key].int64_param = value
        elif isinstance(value, int) and value < 2**64:
            target[key].uint64_param = value
        elif isinstance(value, float):
            target[key].double_param = value
        elif isinstance(value, str):
            target[key].string_param = value
