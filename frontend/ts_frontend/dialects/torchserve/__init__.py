"""TorchServe's own API: predictions, explanations, models, metrics and their descriptions."""

from __future__ import annotations

import dataclasses

from ts_frontend.dialects.base import GrpcServices, HttpRoutes, Planes, guarded
from ts_frontend.dialects.json_body import respond_json
from ts_frontend.dialects.torchserve import openapi as doc
from ts_frontend.dialects.torchserve.routes import (
    InferenceApi,
    ManagementApi,
    MetricsApi,
    TokenApi,
    model_path_missing,
    root,
)
from ts_frontend.http.openapi import Operation, build_document
from ts_frontend.http.request import Handler, HttpRequest
from ts_frontend.http.router import Route
from ts_frontend.tokens import KeyKind


class TorchServeDialect:
    name = "torchserve"

    def http_routes(self, planes: Planes) -> HttpRoutes:
        """The order is the priority, and the order in which the documents list the operations."""
        return HttpRoutes(
            inference=_described(planes.version, _inference_routes(planes)),
            management=_described(planes.version, _management_routes(planes)),
            metrics=_described(planes.version, _metrics_routes(planes)),
        )

    def grpc_services(self, planes: Planes) -> GrpcServices:
        from ts_frontend.dialects.torchserve.servicer import services

        return services(planes)


def _described(version: str, routes: list[Route]) -> list[Route]:
    """`routes`, with those in front that describe all of their listener; that needs no key.

    The paths of other dialects come behind TorchServe's own, in whose order clients find them.
    """

    def describe(request: HttpRequest) -> None:
        document = build_document(
            request.routes, title=doc.TITLE, version=version, description=doc.DESCRIPTION
        )
        paths = document["paths"]
        own = build_document(shown, title=doc.TITLE, version=version)["paths"]
        document["paths"] = {path: paths[path] for path in (own | paths)}
        respond_json(request, document)

    first = Route("OPTIONS", "/", describe, doc.API_DESCRIPTION)
    page = Route("*", "/api-description", describe, doc.API_DESCRIPTION_PAGE)
    shown = [first, *routes, page]
    return [first, page, *routes, Route("*", "/", root)]


def _inference_routes(planes: Planes) -> list[Route]:
    api = InferenceApi(planes)

    def route(pattern: str, handler: Handler, operation: Operation | None = None) -> Route:
        return Route("*", pattern, guarded(handler, planes.tokens, KeyKind.INFERENCE), operation)

    return [
        route("/ping", api.ping, doc.PING),
        route("/health/live", api.live),
        route("/health/ready", api.ready),
        route("/health/ready/{model_name}", api.model_ready),
        route("/health/ready/{model_name}/{model_version}", api.model_ready),
        route("/v2/models/{model_name}/infer", api.infer_v2, doc.INFER_V2),
        route("/v2/models/{model_name}/explain", api.explain_v2),
        route("/predictions/{model_name}", api.predict, doc.PREDICTIONS),
        route(
            "/predictions/{model_name}/{model_version}/{url_path*}",
            api.predict,
            _at(doc.VERSION_PREDICTIONS, "/predictions/{model_name}/{model_version}"),
        ),
        route("/explanations/{model_name}", api.explain, doc.EXPLANATIONS),
        route(
            "/explanations/{model_name}/{model_version}/{url_path*}",
            api.explain,
            _at(doc.VERSION_EXPLANATIONS, "/explanations/{model_name}/{model_version}"),
        ),
        route("/predictions", model_path_missing),
        route("/explanations", model_path_missing),
        route("/invocations", api.invocations),
        route("/models/{model_name}/invoke", api.predict_with_query),
        route("/{model_name}/predict", api.predict_with_query),
        route("/{model_name}/{model_version}/predict", api.predict_with_query),
    ]


def _management_routes(planes: Planes) -> list[Route]:
    api = ManagementApi(planes)

    def route(
        method: str, pattern: str, handler: Handler, operation: Operation | None = None
    ) -> Route:
        return Route(
            method, pattern, guarded(handler, planes.tokens, KeyKind.MANAGEMENT), operation
        )

    model, version = "/models/{model_name}", "/models/{model_name}/{model_version}"
    routes = [
        route("GET", "/models", api.list_models, doc.LIST_MODELS),
        route("POST", "/models", api.register, doc.REGISTER_MODEL),
        route("GET", model, api.describe, doc.DESCRIBE_MODEL),
        route("PUT", model, api.scale, doc.SET_AUTO_SCALE),
        route("DELETE", model, api.unregister, doc.UNREGISTER_MODEL),
        route("OPTIONS", model, api.describe_model_api),
        # Before the versions: none of them can be called "rollout".
        route("POST", f"{model}/rollout", api.start_rollout, doc.START_ROLLOUT),
        route("GET", f"{model}/rollout", api.list_rollouts, doc.LIST_ROLLOUTS),
        route("DELETE", f"{model}/rollout", api.abort_rollout, doc.ABORT_ROLLOUT),
        route("GET", version, api.describe, doc.VERSION_DESCRIBE_MODEL),
        route("PUT", version, api.scale, doc.VERSION_SET_AUTO_SCALE),
        route("DELETE", version, api.unregister, doc.VERSION_UNREGISTER_MODEL),
        route("OPTIONS", version, api.describe_model_api),
        route("PUT", f"{version}/set-default", api.set_default, doc.SET_DEFAULT),
    ]
    if planes.tokens is not None:
        routes.append(Route("*", "/token", TokenApi(planes.tokens).refresh))
    return routes


def _metrics_routes(planes: Planes) -> list[Route]:
    return [Route("*", "/metrics", MetricsApi(planes).metrics, doc.METRICS)]


def _at(operation: Operation, path: str) -> Operation:
    """`operation` as the documents show it: without the free tail of its route."""
    return dataclasses.replace(operation, path=path)
