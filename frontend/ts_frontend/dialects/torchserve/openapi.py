"""What the API descriptions say of each TorchServe route (contract, HTTP section 11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ts_frontend.http.openapi import (
    BINARY,
    OPENAPI_VERSION,
    STRING,
    Operation,
    Parameter,
    RequestBody,
    Response,
    Schema,
)

TITLE = "TorchServe APIs"
DESCRIPTION = "TorchServe is a flexible and easy to use tool for serving deep learning models"

INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
ERROR: Schema = {
    "type": "object",
    "properties": {
        "code": {"type": "integer", "description": "Error code."},
        "type": {"type": "string", "description": "Error type."},
        "message": {"type": "string", "description": "Error message."},
    },
    "required": ["code", "type", "message"],
}
STATUS: Schema = {
    "type": "object",
    "properties": {"status": {"type": "string"}},
    "required": ["status"],
}
ANY_BODY = RequestBody(
    {
        "application/json": {"description": "Any JSON value, as the model's handler expects it."},
        "*/*": BINARY,
    },
    "Input of the model, in the form that its handler expects.",
    True,
)


def _error(description: str) -> Response:
    return Response(description, {"application/json": ERROR})


def _status(description: str) -> Response:
    return Response(description, {"application/json": STATUS})


INTERNAL_ERROR = _error("Internal Server Error")
NOT_FOUND = _error("Model not found or Model Version not found")
BAD_REQUEST = _error("Bad request")
NO_WORKER = _error("No worker is available to serve request")

MODEL_NAME = Parameter("model_name", "Name of model", "path")
MODEL_VERSION = Parameter("model_version", "Version of model", "path")

PREDICTED: Mapping[int, Response] = {
    200: Response("Output of the model, in the form that its handler chose", {"*/*": BINARY}),
    404: NOT_FOUND,
    500: INTERNAL_ERROR,
    503: NO_WORKER,
}


def _default(schema: Schema, value: Any) -> Schema:
    return {**schema, "default": value}


API_DESCRIPTION = Operation(
    "apiDescription",
    "Get openapi description.",
    responses={
        200: Response("A openapi 3.0.1 descriptor", {"application/json": OBJECT}),
        500: INTERNAL_ERROR,
    },
    method="options",
    path="/",
)
API_DESCRIPTION_PAGE = Operation(
    "api-description",
    "Get openapi description.",
    responses=API_DESCRIPTION.responses,
    deprecated=True,
    method="get",
)
PING = Operation(
    "ping",
    "Get TorchServe status.",
    responses={200: _status("TorchServe status"), 500: _status("TorchServe is unhealthy")},
    method="get",
)
PREDICTIONS = Operation(
    "predictions",
    "Predictions entry point to get inference using default model version.",
    (MODEL_NAME,),
    ANY_BODY,
    PREDICTED,
    method="post",
)
VERSION_PREDICTIONS = Operation(
    "version_predictions",
    "Predictions entry point to get inference using specific model version.",
    (MODEL_NAME, MODEL_VERSION),
    ANY_BODY,
    PREDICTED,
    method="post",
)
EXPLANATIONS = Operation(
    "explanations",
    "Explanations entry point to get explanations using default model version.",
    (MODEL_NAME,),
    ANY_BODY,
    PREDICTED,
    method="post",
)
VERSION_EXPLANATIONS = Operation(
    "version_explanations",
    "Explanations entry point to get explanations using specific model version.",
    (MODEL_NAME, MODEL_VERSION),
    ANY_BODY,
    PREDICTED,
    method="post",
)
INFER_V2 = Operation(
    "predictV2",
    "Predictions entry point in KServe's v2 form.",
    (MODEL_NAME,),
    ANY_BODY,
    PREDICTED,
    method="post",
)
METRICS = Operation(
    "metrics",
    "Get TorchServe application metrics in prometheus format.",
    (
        Parameter(
            "name[]",
            "Names of metrics to filter",
            schema={"type": "array", "items": {"type": "string"}},
        ),
    ),
    responses={
        200: Response(
            "TorchServe application metrics", {"text/plain; version=0.0.4; charset=utf-8": STRING}
        ),
        500: INTERNAL_ERROR,
    },
    method="get",
)

MODEL_LIST: Schema = {
    "type": "object",
    "properties": {
        "nextPageToken": {
            "type": "string",
            "description": "Use this parameter in a subsequent request after you receive a "
            "response with truncated results.",
        },
        "models": {
            "type": "array",
            "description": "A list of registered models.",
            "items": {
                "type": "object",
                "properties": {
                    "modelName": {"type": "string"},
                    "modelUrl": {"type": "string"},
                },
                "required": ["modelName", "modelUrl"],
            },
        },
    },
    "required": ["models"],
}
LIST_MODELS = Operation(
    "listModels",
    "List registered models in TorchServe.",
    (
        Parameter(
            "limit",
            "Use this parameter to specify the maximum number of items to return.",
            schema=_default(INTEGER, 100),
        ),
        Parameter("next_page_token", "The token to retrieve the next set of results."),
    ),
    responses={200: Response("OK", {"application/json": MODEL_LIST}), 500: INTERNAL_ERROR},
)

_REGISTER: Sequence[tuple[str, str, Schema, bool]] = (
    ("url", "Model archive: a file of the model store, a directory or a URL.", STRING, True),
    ("model_name", "Name of model. This value overrides the name in the archive.", STRING, False),
    (
        "handler",
        "Inference handler entry-point. This value overrides the archive's.",
        STRING,
        False,
    ),
    (
        "runtime",
        "Runtime for the model custom service code.",
        {"type": "string", "enum": ["python", "python3"]},
        False,
    ),
    ("batch_size", "Inference batch size, default: 1.", _default(INTEGER, 1), False),
    (
        "max_batch_delay",
        "Maximum delay for batch aggregation, in ms.",
        _default(INTEGER, 100),
        False,
    ),
    (
        "response_timeout",
        "Maximum time, in seconds, TorchServe waits for a response from the model inference code.",
        _default(INTEGER, 120),
        False,
    ),
    (
        "startup_timeout",
        "Maximum time, in seconds, TorchServe waits for the model to start up.",
        _default(INTEGER, 120),
        False,
    ),
    ("initial_workers", "Number of initial workers, default: 0.", _default(INTEGER, 0), False),
    (
        "synchronous",
        "Whether creation of workers is synchronous. The default is true.",
        _default(BOOLEAN, True),
        False,
    ),
    ("s3_sse_kms", "Model mar file is S3 SSE KMS enabled.", _default(BOOLEAN, False), False),
)
REGISTER_MODEL = Operation(
    "registerModel",
    "Register a new model in TorchServe.",
    [
        Parameter(name, text, "query", required, schema)
        for name, text, schema, required in _REGISTER
    ],
    RequestBody(
        {
            "application/json": {
                "type": "object",
                "properties": {name: schema for name, _, schema, _ in _REGISTER},
                "required": ["url"],
            }
        },
        "The same parameters as a JSON object, in place of the query.",
    ),
    {
        200: _status("Model registered"),
        202: _status("Accepted"),
        206: _status("Workers scaling in progress"),
        400: BAD_REQUEST,
        404: _error("Model not found"),
        405: _error("Model API is switched off"),
        409: _error("Model already registered"),
        500: INTERNAL_ERROR,
    },
)

WORKER: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "Worker id"},
        "startTime": {"type": "string", "description": "Worker start time"},
        "status": {"type": "string", "enum": ["READY", "UNLOADING"]},
        "memoryUsage": {"type": "integer", "description": "Worker memory usage in bytes"},
        "pid": {"type": "integer"},
        "gpu": {"type": "boolean", "description": "If running on GPU"},
        "gpuUsage": {"type": "string"},
    },
}
MODEL_DESCRIPTION: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "modelName": {"type": "string", "description": "Name of the model"},
            "modelVersion": {"type": "string", "description": "Version of the model"},
            "modelUrl": {"type": "string", "description": "URL of the model"},
            "runtime": {"type": "string"},
            "minWorkers": {
                "type": "integer",
                "description": "Configured minimum number of workers",
            },
            "maxWorkers": {
                "type": "integer",
                "description": "Configured maximum number of workers",
            },
            "batchSize": {"type": "integer", "description": "Configured batch size"},
            "maxBatchDelay": {
                "type": "integer",
                "description": "Configured maximum batch delay in ms",
            },
            "workers": {"type": "array", "items": WORKER},
            "jobQueueStatus": {
                "type": "object",
                "properties": {
                    "remainingCapacity": {"type": "integer"},
                    "pendingRequests": {"type": "integer"},
                },
            },
        },
        "required": ["modelName", "modelVersion", "modelUrl", "workers", "jobQueueStatus"],
    },
}
_DESCRIBED: Mapping[int, Response] = {
    200: Response("OK", {"application/json": MODEL_DESCRIPTION}),
    404: NOT_FOUND,
    500: INTERNAL_ERROR,
}
_CUSTOMIZED = Parameter(
    "customized", "Ask the handler to describe itself too.", schema=_default(BOOLEAN, False)
)
_SCALE = (
    Parameter("min_worker", "Minimum number of worker processes.", schema=_default(INTEGER, 1)),
    Parameter("max_worker", "Maximum number of worker processes.", schema=INTEGER),
    Parameter("synchronous", "Wait until the workers are ready.", schema=_default(BOOLEAN, False)),
)
_SCALED: Mapping[int, Response] = {
    200: _status("Model workers updated"),
    202: _status("Accepted"),
    206: _status("Workers scaling in progress"),
    400: BAD_REQUEST,
    404: NOT_FOUND,
    500: INTERNAL_ERROR,
}
_UNREGISTERED: Mapping[int, Response] = {
    200: _status("Model unregistered"),
    403: _error("Default version of a model with other versions"),
    404: NOT_FOUND,
    405: _error("Model API is switched off"),
    408: _error("Request Timeout"),
    500: INTERNAL_ERROR,
}


def _both_forms(
    operation_id: str,
    description: str,
    parameters: Sequence[Parameter],
    responses: Mapping[int, Response],
) -> tuple[Operation, Operation]:
    """The operation on the default version, and on one that the path names."""
    return (
        Operation(operation_id, description, (MODEL_NAME, *parameters), None, responses),
        Operation(
            f"version_{operation_id}",
            description,
            (MODEL_NAME, MODEL_VERSION, *parameters),
            None,
            responses,
        ),
    )


DESCRIBE_MODEL, VERSION_DESCRIBE_MODEL = _both_forms(
    "describeModel", "Provides detailed information about a model.", (_CUSTOMIZED,), _DESCRIBED
)
SET_AUTO_SCALE, VERSION_SET_AUTO_SCALE = _both_forms(
    "setAutoScale", "Configure number of workers for a model.", _SCALE, _SCALED
)
UNREGISTER_MODEL, VERSION_UNREGISTER_MODEL = _both_forms(
    "unregisterModel", "Unregister a model from TorchServe.", (), _UNREGISTERED
)
SET_DEFAULT = Operation(
    "setDefault",
    "Set default version of a model",
    (MODEL_NAME, MODEL_VERSION),
    responses={
        200: _status("Default version successfully updated"),
        404: NOT_FOUND,
        500: INTERNAL_ERROR,
    },
)


# Ours.
NUMBER: Schema = {"type": "number"}
_ROLLOUT_FIGURES: Schema = {
    "type": "object",
    "properties": {
        "requests": INTEGER,
        "failures": INTEGER,
        "p50Ms": NUMBER,
        "p99Ms": NUMBER,
    },
}
ROLLOUT: Schema = {
    "type": "object",
    "properties": {
        "modelName": STRING,
        "currentVersion": STRING,
        "newVersion": STRING,
        "state": {
            "type": "string",
            "enum": [
                *("LOADING", "SHADOW", "CANARY", "SWITCHING", "DONE"),
                *("UNDOING", "ROLLED_BACK", "ABORTED"),
            ],
        },
        "reason": {"type": "string", "description": "Why the new version was taken back"},
        "percent": NUMBER,
        "waitsFor": STRING,
        "startTime": STRING,
        "endTime": STRING,
        "figures": {
            "type": "object",
            "properties": {"newVersion": _ROLLOUT_FIGURES, "currentVersion": _ROLLOUT_FIGURES},
        },
        "movedRequests": INTEGER,
        "skippedCopies": INTEGER,
        "differingCopies": INTEGER,
        "steps": {"type": "array", "items": OBJECT},
        "plan": OBJECT,
    },
    "required": ["modelName", "currentVersion", "newVersion", "state"],
}
_ROLLOUT_PARAMETERS: Sequence[tuple[str, str, Schema]] = (
    ("version", "The new version, if it is registered.", STRING),
    ("url", "The new version's archive, if it is not.", STRING),
    ("initial_workers", "Workers of the new version; 0: as the current one.", _default(INTEGER, 0)),
    ("shadow", "Percentage of the requests that are copied first.", _default(NUMBER, 0)),
    ("shadow_s", "How long, in seconds.", _default(NUMBER, 60)),
    ("canary", "Percentages of the requests, one step each.", _default(STRING, "5,25,50")),
    ("step_s", "Length of a step, in seconds.", _default(NUMBER, 60)),
    ("sticky_header", "Requests with the same value stay with one version.", STRING),
    ("max_error_rate", "Limit of failed requests, from 0 to 1.", _default(NUMBER, 0.05)),
    ("max_p99_ms", "Limit of the 99 % latency; 0: none.", _default(NUMBER, 0)),
    ("max_p99_ratio", "The same as a multiple of the current version's.", _default(NUMBER, 0)),
    ("min_requests", "Requests before a step is judged.", _default(INTEGER, 20)),
    ("timeout_s", "From the load to the switch, in seconds.", _default(NUMBER, 3600)),
    ("drain_s", "How long running requests may take at the end.", _default(NUMBER, 60)),
    ("old_version", "What becomes of it.", {"type": "string", "enum": ["unregister", "keep"]}),
    ("failed_version", "What becomes of it.", {"type": "string", "enum": ["unregister", "keep"]}),
)
_NO_MODEL_OR_ROLLOUT = _error("Model or rollout not found")
START_ROLLOUT = Operation(
    "startRollout",
    "Let a new version take over step by step, with a way back.",
    [
        MODEL_NAME,
        *(Parameter(name, text, schema=schema) for name, text, schema in _ROLLOUT_PARAMETERS),
    ],
    RequestBody(
        {
            "application/json": {
                "type": "object",
                "properties": {
                    **{name: schema for name, _, schema in _ROLLOUT_PARAMETERS},
                    "canary": {"type": "array", "items": NUMBER, "default": [5, 25, 50]},
                },
            }
        },
        "The same parameters as a JSON object, in place of the query.",
    ),
    {
        202: Response("Accepted", {"application/json": ROLLOUT}),
        400: BAD_REQUEST,
        404: NOT_FOUND,
        405: _error("Model API is switched off"),
        409: _error("Another rollout is under way, or the version is registered"),
        500: INTERNAL_ERROR,
    },
)
LIST_ROLLOUTS = Operation(
    "listRollouts",
    "The rollout of a model that is under way and those before, the newest first.",
    (MODEL_NAME,),
    responses={
        200: Response("OK", {"application/json": {"type": "array", "items": ROLLOUT}}),
        404: _NO_MODEL_OR_ROLLOUT,
        500: INTERNAL_ERROR,
    },
)
ABORT_ROLLOUT = Operation(
    "abortRollout",
    "Take the new version out of the traffic and away.",
    (MODEL_NAME,),
    responses={
        200: Response("OK", {"application/json": ROLLOUT}),
        404: _NO_MODEL_OR_ROLLOUT,
        409: _error("It is over but for the tidying up"),
        500: INTERNAL_ERROR,
    },
)


def model_inference_document(name: str) -> dict[str, Any]:
    """What OPTIONS on a model's prediction path answers; its paths and names are TorchServe's."""
    operation = {
        "description": f"A predict entry point for model: {name}.",
        "operationId": name,
        "parameters": [],
        "responses": {str(status): PREDICTED[status].describe() for status in (200, 500)},
    }
    paths = (
        f"/prediction/{name}",
        "/v1/models/{model_name}:predict",
        "/v2/models/{model_name}/infer",
    )
    return _model_document(
        f"RESTful API for: {name}", {path: {"post": operation} for path in paths}
    )


def model_management_document(name: str) -> dict[str, Any]:
    """What OPTIONS on a model's management path answers."""
    operations = {"get": DESCRIBE_MODEL, "put": SET_AUTO_SCALE, "delete": UNREGISTER_MODEL}
    described: dict[str, Any] = {}
    for method, operation in operations.items():
        described[method] = operation.describe()
        described[method]["parameters"] = [
            parameter for parameter in described[method]["parameters"] if parameter["in"] != "path"
        ]
    return _model_document(f"RESTful Management API for: {name}", {f"/models/{name}": described})


def _model_document(title: str, paths: dict[str, Any]) -> dict[str, Any]:
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": title, "version": "1.0.0"},
        "paths": paths,
    }
