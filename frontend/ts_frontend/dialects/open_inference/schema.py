"""The Open Inference Protocol's JSON, in its own spelling, and its datatypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec


class Datatype(NamedTuple):
    """How the elements of a tensor are written.

    size: bytes of one element in raw contents; 0 for BYTES, whose elements tell theirs.
    code: of the modules struct and array; "" where neither knows the type.
    contents: the field of the gRPC message InferTensorContents; "" where there is none.
    """

    size: int
    code: str
    contents: str

    @property
    def is_float(self) -> bool:
        return self.code in ("", "e", "f", "d") and self.size > 0


DATATYPES: Mapping[str, Datatype] = {
    "BOOL": Datatype(1, "?", "bool_contents"),
    "UINT8": Datatype(1, "B", "uint_contents"),
    "UINT16": Datatype(2, "H", "uint_contents"),
    "UINT32": Datatype(4, "I", "uint_contents"),
    "UINT64": Datatype(8, "Q", "uint64_contents"),
    "INT8": Datatype(1, "b", "int_contents"),
    "INT16": Datatype(2, "h", "int_contents"),
    "INT32": Datatype(4, "i", "int_contents"),
    "INT64": Datatype(8, "q", "int64_contents"),
    "FP16": Datatype(2, "e", ""),
    "BF16": Datatype(2, "", ""),
    "FP32": Datatype(4, "f", "fp32_contents"),
    "FP64": Datatype(8, "d", "fp64_contents"),
    "BYTES": Datatype(0, "", "bytes_contents"),
}

Parameters = dict[str, bool | int | float | str | None]

# Written by `parameters` of the binary tensor data extension.
BINARY_SIZE = "binary_data_size"
BINARY_OUTPUT = "binary_data"
BINARY_OUTPUTS = "binary_data_output"

NO_DATA = msgspec.Raw()


class InputTensor(msgspec.Struct, omit_defaults=True):
    """data: the JSON text of the elements, nested or flat."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: msgspec.Raw = NO_DATA


class RequestedOutput(msgspec.Struct, omit_defaults=True):
    name: str
    parameters: Parameters | None = None


class InferRequest(msgspec.Struct, omit_defaults=True):
    """The body of `POST .../infer`, and what the worker gets."""

    inputs: list[InputTensor]
    id: str | None = None
    model_name: str | None = None
    parameters: Parameters | None = None
    outputs: list[RequestedOutput] | None = None


class OutputTensor(msgspec.Struct, omit_defaults=True):
    """data: as in an input; none where the elements follow the JSON as bytes."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = NO_DATA


class InferResponse(msgspec.Struct, omit_defaults=True):
    """The answer of a model, as the worker's envelope makes it, and of `POST .../infer`."""

    outputs: list[OutputTensor]
    model_name: str | None = None
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


class TensorMetadata(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(msgspec.Struct):
    """TorchServe misspells one member, and its clients read it so; the right one stands beside."""

    name: str
    version: str
    extenstion: list[str]
    extensions: list[str]


class Live(msgspec.Struct):
    live: bool


class Ready(msgspec.Struct):
    ready: bool


class ModelReady(msgspec.Struct):
    name: str
    ready: bool


class ErrorBody(msgspec.Struct):
    error: str


SERVER_NAME = "Torchserve"
TORCHSERVE_EXTENSIONS = ["kserve", "kubeflow"]
EXTENSIONS = [*TORCHSERVE_EXTENSIONS, "binary_tensor_data"]
