"""The document made of described routes."""

from __future__ import annotations

import json

from openapi_spec_validator import OpenAPIV30SpecValidator

from ts_frontend.http.openapi import (
    BINARY,
    Operation,
    Parameter,
    RequestBody,
    Response,
    build_document,
)
from ts_frontend.http.router import Route


def handler(request):
    raise AssertionError("never called")


MODEL_NAME = Parameter("model_name", "Name of the model.", location="path")
DONE = Response("Done.", {"application/json": {"type": "object"}})
ROUTES = [
    Route("GET", "/ping", handler, Operation("ping", "Health.", responses={200: DONE, 500: DONE})),
    Route(
        "*",
        "/predictions/{model_name}",
        handler,
        Operation(
            "predictions",
            "Predict.",
            parameters=[MODEL_NAME, Parameter("name[]", location="query")],
            request_body=RequestBody({"*/*": BINARY}, "The input.", required=True),
            responses={200: DONE},
        ),
    ),
    Route("GET", "/internal", handler),
    Route(
        "*",
        "/predictions/{model_name}/{model_version}/{rest*}",
        handler,
        Operation(
            "version_predictions",
            parameters=[MODEL_NAME, Parameter("model_version", location="path")],
            responses={200: DONE},
            path="/predictions/{model_name}/{model_version}",
            also=[Operation("other", method="get", path="/other", responses={200: Response("x")})],
        ),
    ),
    Route(
        "GET",
        "/api-description",
        handler,
        Operation("api-description", deprecated=True, responses={200: DONE}),
    ),
]


def test_document():
    document = build_document(ROUTES, title="APIs", version="1.2.3", description="All of them.")
    OpenAPIV30SpecValidator(document).validate()
    assert json.loads(json.dumps(document)) == document
    assert list(document) == ["openapi", "info", "paths"]
    assert document["openapi"] == "3.0.1"
    assert document["info"] == {"title": "APIs", "description": "All of them.", "version": "1.2.3"}
    assert list(document["paths"]) == [
        "/ping",
        "/predictions/{model_name}",
        "/predictions/{model_name}/{model_version}",
        "/other",
        "/api-description",
    ]
    operation = document["paths"]["/predictions/{model_name}"]["post"]
    assert list(operation) == [
        "description",
        "operationId",
        "parameters",
        "requestBody",
        "responses",
    ]
    assert [parameter["required"] for parameter in operation["parameters"]] == [True, False]
    described = document["paths"]["/api-description"]["get"]
    assert list(described)[-1] == "deprecated"
    assert described["parameters"] == []


def test_first_description_of_a_path_and_method_counts():
    routes = [
        Route("GET", "/a", handler, Operation("first", responses={200: DONE})),
        Route("*", "/a", handler, Operation("posted", responses={200: DONE})),
        Route("GET", "/a", handler, Operation("second", responses={200: DONE})),
    ]
    item = build_document(routes, title="t", version="1")["paths"]["/a"]
    assert {method: operation["operationId"] for method, operation in item.items()} == {
        "get": "first",
        "post": "posted",
    }
