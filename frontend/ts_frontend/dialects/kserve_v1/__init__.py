"""KServe's v1 protocol as TorchServe serves it: `:predict`, `:explain`, and the model's status;
besides, what the protocol has and TorchServe has not: the list of models, and that the server
lives.

The body goes to the handler as it came (`service_envelope=kserve` takes `instances` apart in the
worker), so the dialect is a few routes over the data plane.
"""

from __future__ import annotations

import msgspec

from ts_frontend.core.errors import RouteNotFound
from ts_frontend.dialects.base import GrpcServices, HttpRoutes, Planes, guarded
from ts_frontend.dialects.inference_http import send, to_inference_request
from ts_frontend.dialects.json_body import respond_json
from ts_frontend.dialects.kserve_v1 import openapi as doc
from ts_frontend.http.openapi import Operation
from ts_frontend.http.request import Handler, HttpRequest
from ts_frontend.http.router import Route
from ts_frontend.tokens import KeyKind


class ServerStatus(msgspec.Struct):
    status: str


class ModelStatus(msgspec.Struct):
    name: str
    ready: bool


class ModelNames(msgspec.Struct):
    models: list[str]


class KServeV1Dialect:
    name = "kserve_v1"

    def http_routes(self, planes: Planes) -> HttpRoutes:
        api = KServeV1Api(planes)
        model = "/v1/models/{model_name}"

        def route(
            kind: KeyKind, method: str, pattern: str, handler: Handler, operation: Operation
        ) -> Route:
            return Route(method, pattern, guarded(handler, planes.tokens, kind), operation)

        inference, management = KeyKind.INFERENCE, KeyKind.MANAGEMENT
        return HttpRoutes(
            inference=[
                route(inference, "GET", "/", api.live, doc.LIVE),
                route(inference, "GET", "/v1/models", api.names, doc.NAMES),
                route(inference, "*", model, api.predict_or_explain, doc.MODEL),
            ],
            management=[
                route(management, "GET", "/v1/models", api.names, doc.NAMES),
                route(management, "GET", model, api.status, doc.STATUS),
            ],
        )

    def grpc_services(self, planes: Planes) -> GrpcServices:
        return GrpcServices()  # the protocol has no gRPC form


class KServeV1Api:
    def __init__(self, planes: Planes) -> None:
        self._planes = planes

    def predict_or_explain(self, request: HttpRequest) -> None:
        """The verb follows the first colon; TorchServe accepts whatever contains it, and so does
        this.
        """
        name, _, verb = request.params[0].partition(":")
        if verb.startswith("predict") or verb.startswith("explain"):
            inference = to_inference_request(
                request,
                explain=verb.startswith("explain"),
                max_parts=self._planes.max_multipart_parts,
            )
            send(self._planes.data, request, name, None, inference)
            return
        if not verb and request.method in ("GET", "HEAD"):
            # KServe's clients ask for the status at the port that serves the model.
            self.status(request)
            return
        raise RouteNotFound

    def live(self, request: HttpRequest) -> None:
        respond_json(request, ServerStatus("alive"))

    def names(self, request: HttpRequest) -> None:
        models = self._planes.control.registry.defaults()
        respond_json(request, ModelNames([model.id.name for model in models]))

    def status(self, request: HttpRequest) -> None:
        model = self._planes.data.resolve(request.params[0])
        respond_json(request, ModelStatus(model.id.name, self._planes.health.is_ready(model)))
