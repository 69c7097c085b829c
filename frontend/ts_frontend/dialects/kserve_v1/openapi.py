"""What the API description says of the protocol's paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ts_frontend.http.openapi import (
    BINARY,
    STRING,
    Operation,
    Parameter,
    RequestBody,
    Response,
    Schema,
)

_JSON = "application/json"

MODEL_NAME = Parameter("model_name", "Name of model", "path")

_ROWS: Schema = {"type": "array", "items": {}}
# Errors are answered in the server's own form, as TorchServe does on these paths.
_ERROR: Schema = {
    "type": "object",
    "properties": {"code": {"type": "integer"}, "type": STRING, "message": STRING},
    "required": ["code", "type", "message"],
}
_BAD_PATH = Response("The path is not text", {_JSON: _ERROR})
_NOT_FOUND = Response("Model not found", {_JSON: _ERROR})


def _object(**properties: Schema) -> Mapping[str, Schema]:
    """JSON with these members, all of them there."""
    return {_JSON: {"type": "object", "properties": properties, "required": list(properties)}}


LIVE = Operation(
    "kserveLive",
    "Whether the server answers.",
    responses={200: Response("OK", _object(status=STRING))},
)
NAMES = Operation(
    "kserveModels",
    "Names of the registered models.",
    responses={200: Response("OK", _object(models={"type": "array", "items": STRING}))},
)
STATUS = Operation(
    "kserveModelStatus",
    "Whether the model is ready.",
    (MODEL_NAME,),
    responses={
        200: Response("OK", _object(name=STRING, ready={"type": "boolean"})),
        400: _BAD_PATH,
        404: _NOT_FOUND,
    },
    method="get",
)


def _verb(name: str, result: str) -> Operation:
    return Operation(
        f"kserve{name.capitalize()}",
        f"The model's {result} for the rows of the body.",
        (MODEL_NAME,),
        RequestBody(
            {
                _JSON: {
                    "type": "object",
                    "properties": {"instances": _ROWS, "inputs": _ROWS},
                }
            },
            "The rows as `instances`, or as `inputs`.",
            True,
        ),
        {
            200: Response(
                f"What the handler answers; with `service_envelope=kserve` an object of {result}.",
                {"*/*": BINARY},
            ),
            400: Response("The body is not what the handler takes", {_JSON: _ERROR}),
            404: _NOT_FOUND,
            500: Response("Internal Server Error", {_JSON: _ERROR}),
            503: Response("No worker is available to serve request", {_JSON: _ERROR}),
        },
        method="post",
        path=f"/v1/models/{{model_name}}:{name}",
    )


# One route, whose verb follows the name.
MODEL = dataclasses.replace(
    STATUS, also=(_verb("predict", "predictions"), _verb("explain", "explanations"))
)
