"""Descriptions of routes, and the OpenAPI 3.0.1 document made of them.

A route carries an `Operation`; `build_document` puts those of a listener together. Member order
follows TorchServe's documents, which people compare as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ts_frontend.http.router import Route

OPENAPI_VERSION = "3.0.1"

Schema = Mapping[str, Any]
"""A schema object of OpenAPI 3.0, as plain data."""

STRING: Schema = {"type": "string"}
BINARY: Schema = {"type": "string", "format": "binary"}

JSON_TYPE = "application/json"


def json_object(**properties: Schema) -> Mapping[str, Schema]:
    """Content that is a JSON object with these members, all of them there."""
    return {JSON_TYPE: {"type": "object", "properties": properties, "required": list(properties)}}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; a path parameter is always required."""

    name: str
    description: str = ""
    location: Literal["path", "query", "header", "cookie"] = "query"
    required: bool = False
    schema: Schema = field(default_factory=lambda: STRING)

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"in": self.location, "name": self.name}
        if self.description:
            described["description"] = self.description
        described["required"] = self.required or self.location == "path"
        described["schema"] = dict(self.schema)
        return described


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; `content` maps media types to schemas."""

    description: str
    content: Mapping[str, Schema] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"description": self.description}
        if self.content:
            described["content"] = _describe_content(self.content)
        return described


@dataclass(frozen=True, slots=True)
class RequestBody:
    content: Mapping[str, Schema]
    description: str = ""
    required: bool = False

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {}
        if self.description:
            described["description"] = self.description
        described["content"] = _describe_content(self.content)
        described["required"] = self.required
        return described


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route does, for the document.

    method, path: how the document names the operation where that differs from the route, as for a
        route that takes any method or a free tail. Without them the route's own are used, a "*" as
        "post".
    also: further operations of the same route (a document may show POST and GET of one handler).
    """

    operation_id: str
    description: str = ""
    parameters: Sequence[Parameter] = ()
    request_body: RequestBody | None = None
    responses: Mapping[int, Response] = field(default_factory=dict)
    deprecated: bool = False
    method: str | None = None
    path: str | None = None
    also: Sequence[Operation] = ()

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {
            "description": self.description,
            "operationId": self.operation_id,
            "parameters": [parameter.describe() for parameter in self.parameters],
        }
        if self.request_body is not None:
            described["requestBody"] = self.request_body.describe()
        described["responses"] = {
            str(status): response.describe() for status, response in self.responses.items()
        }
        if self.deprecated:
            described["deprecated"] = True
        return described


def _describe_content(content: Mapping[str, Schema]) -> dict[str, Any]:
    return {media_type: {"schema": dict(schema)} for media_type, schema in content.items()}


def build_document(
    routes: Iterable[Route], *, title: str, version: str, description: str = ""
) -> dict[str, Any]:
    """The OpenAPI document of the routes that carry a description, in their order."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.doc is None:
            continue
        for operation in (route.doc, *route.doc.also):
            method = operation.method or ("post" if route.method == "*" else route.method)
            item = paths.setdefault(operation.path or route.pattern, {})
            item.setdefault(method.lower(), operation.describe())
    info: dict[str, Any] = {"title": title}
    if description:
        info["description"] = description
    info["version"] = version
    return {"openapi": OPENAPI_VERSION, "info": info, "paths": paths}
