"""What the API description says of the protocol's paths."""

from __future__ import annotations

import dataclasses

from ts.protocol.tensors import BINARY_CONTENT_TYPE
from ts_frontend.dialects.open_inference.schema import DATATYPES
from ts_frontend.http.openapi import (
    BINARY,
    JSON_TYPE,
    STRING,
    Operation,
    Parameter,
    RequestBody,
    Response,
    Schema,
    json_object,
)

MODEL_NAME = Parameter("model_name", "Name of model", "path")
MODEL_VERSION = Parameter("model_version", "Version of model", "path")

_DATATYPE: Schema = {"type": "string", "enum": list(DATATYPES)}
_SHAPE: Schema = {"type": "array", "items": {"type": "integer", "format": "int64"}}
_PARAMETERS: Schema = {
    "type": "object",
    "additionalProperties": {
        "oneOf": [{"type": "boolean"}, {"type": "number"}, {"type": "string"}],
    },
}
_DATA: Schema = {
    "description": "The elements in row-major order, nested by the shape or flat.",
    "type": "array",
    "items": {},
}
_TENSOR_METADATA: Schema = {
    "type": "object",
    "properties": {"name": STRING, "datatype": _DATATYPE, "shape": _SHAPE},
    "required": ["name", "datatype", "shape"],
}
_TENSOR: Schema = {
    "type": "object",
    "properties": {
        "name": STRING,
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 64},
        "datatype": _DATATYPE,
        "parameters": _PARAMETERS,
        "data": _DATA,
    },
    "required": ["name", "shape", "datatype"],
}
_INFER_REQUEST: Schema = {
    "type": "object",
    "properties": {
        "id": STRING,
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": STRING, "parameters": _PARAMETERS},
                "required": ["name"],
            },
        },
    },
    "required": ["inputs"],
}
_INFER_RESPONSE: Schema = {
    "type": "object",
    "properties": {
        "model_name": STRING,
        "model_version": STRING,
        "id": STRING,
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
    "required": ["outputs"],
}
_ERROR: Schema = {
    "type": "object",
    "properties": {"error": STRING},
    "required": ["error"],
}


def _failed(description: str) -> Response:
    return Response(description, {JSON_TYPE: _ERROR})


_NOT_FOUND = _failed("Model not found or Model Version not found")
_BAD_PATH = Response("The path is not text")
_BOOLEAN: Schema = {"type": "boolean"}

SERVER_METADATA = Operation(
    "serverMetadata",
    "Name, version and protocol extensions of the server.",
    responses={
        200: Response(
            "OK",
            json_object(name=STRING, version=STRING, extensions={"type": "array", "items": STRING}),
        )
    },
)
SERVER_LIVE = Operation(
    "serverLive",
    "Whether the server answers.",
    responses={200: Response("OK", json_object(live=_BOOLEAN))},
)
SERVER_READY = Operation(
    "serverReady",
    "Whether all models are ready.",
    responses={
        200: Response("Ready", json_object(ready=_BOOLEAN)),
        503: Response("Not ready", json_object(ready=_BOOLEAN)),
    },
)
MODEL_READY = Operation(
    "modelReady",
    "Whether the model has the workers that it should have.",
    (MODEL_NAME,),
    responses={
        200: Response("Ready", json_object(name=STRING, ready=_BOOLEAN)),
        400: _BAD_PATH,
        404: _NOT_FOUND,
        503: Response("Not ready", json_object(name=STRING, ready=_BOOLEAN)),
    },
)
_TENSORS: Schema = {"type": "array", "items": _TENSOR_METADATA}
MODEL_METADATA = Operation(
    "modelMetadata",
    "Versions of the model, its inputs and outputs.",
    (MODEL_NAME,),
    responses={
        200: Response(
            "OK",
            json_object(
                name=STRING,
                versions={"type": "array", "items": STRING},
                platform=STRING,
                inputs=_TENSORS,
                outputs=_TENSORS,
            ),
        ),
        400: _BAD_PATH,
        404: _NOT_FOUND,
    },
)
MODEL_INFER = Operation(
    "modelInfer",
    "Inference with tensors.",
    (
        MODEL_NAME,
        Parameter(
            "Inference-Header-Content-Length",
            "Bytes of JSON at the start of the body, where binary tensors follow it.",
            "header",
            schema={"type": "integer", "minimum": 0},
        ),
    ),
    RequestBody({JSON_TYPE: _INFER_REQUEST, BINARY_CONTENT_TYPE: BINARY}, required=True),
    {
        200: Response("OK", {JSON_TYPE: _INFER_RESPONSE, BINARY_CONTENT_TYPE: BINARY}),
        400: _failed("Bad request"),
        404: _NOT_FOUND,
        413: _failed("The body is too large"),
        500: _failed("The model failed"),
        503: _failed("No worker is available to serve request"),
        504: _failed("The deadline has passed"),
    },
)


def of_default(operation: Operation) -> Operation:
    """`operation` on the default version of a model."""
    return operation


def of_version(operation: Operation) -> Operation:
    """`operation` on a version that the path names."""
    return dataclasses.replace(
        operation,
        operation_id=f"version_{operation.operation_id}",
        parameters=(operation.parameters[0], MODEL_VERSION, *operation.parameters[1:]),
    )
