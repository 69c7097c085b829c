"""What the API description says of the protocol's paths."""

from __future__ import annotations

import dataclasses

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

_ROWS: Schema = {"type": "array", "items": {}}
# Errors are answered in the server's own form, as TorchServe does on these paths.
_ERROR: Schema = {
    "type": "object",
    "properties": {"code": {"type": "integer"}, "type": STRING, "message": STRING},
    "required": ["code", "type", "message"],
}
_BAD_PATH = Response("The path is not text", {JSON_TYPE: _ERROR})
_NOT_FOUND = Response("Model not found", {JSON_TYPE: _ERROR})


LIVE = Operation(
    "kserveLive",
    "Whether the server answers.",
    responses={200: Response("OK", json_object(status=STRING))},
)
NAMES = Operation(
    "kserveModels",
    "Names of the registered models.",
    responses={200: Response("OK", json_object(models={"type": "array", "items": STRING}))},
)
STATUS = Operation(
    "kserveModelStatus",
    "Whether the model is ready.",
    (MODEL_NAME,),
    responses={
        200: Response("OK", json_object(name=STRING, ready={"type": "boolean"})),
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
                JSON_TYPE: {
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
            400: Response("The body is not what the handler takes", {JSON_TYPE: _ERROR}),
            404: _NOT_FOUND,
            500: Response("Internal Server Error", {JSON_TYPE: _ERROR}),
            503: Response("No worker is available to serve request", {JSON_TYPE: _ERROR}),
        },
        method="post",
        path=f"/v1/models/{{model_name}}:{name}",
    )


# One route, whose verb follows the name.
MODEL = dataclasses.replace(
    STATUS, also=(_verb("predict", "predictions"), _verb("explain", "explanations"))
)
