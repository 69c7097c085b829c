"""The Open Inference Protocol's JSON, in its own spelling, and its datatypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from ts.protocol.tensors import ELEMENTS


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


_CONTENTS = {
    "BOOL": "bool_contents",
    **{name: "uint_contents" for name in ("UINT8", "UINT16", "UINT32")},
    "UINT64": "uint64_contents",
    **{name: "int_contents" for name in ("INT8", "INT16", "INT32")},
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

DATATYPES: Mapping[str, Datatype] = {
    name: Datatype(size, code, _CONTENTS.get(name, "")) for name, (size, code) in ELEMENTS.items()
}

Parameters = dict[str, bool | int | float | str | None]

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
