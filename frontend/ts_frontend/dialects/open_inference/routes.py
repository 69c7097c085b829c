"""The protocol's REST form (contract, HTTP section 4.5, and what TorchServe does not answer:
versions, metadata, readiness of a model, binary tensors).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from ts_frontend.core.errors import InvalidArgument
from ts_frontend.core.inference import PREDICT_HEADER, InferenceRequest, Part, ResponseChunk
from ts_frontend.core.model import Model
from ts_frontend.dialects.base import HttpRoutes, Planes, guarded
from ts_frontend.dialects.json_body import JSON, respond_json
from ts_frontend.dialects.open_inference import convert, schema
from ts_frontend.dialects.open_inference.errors import answer_error
from ts_frontend.dialects.open_inference.metadata import TensorCatalog
from ts_frontend.dialects.open_inference.offload import offloaded
from ts_frontend.http.request import Handler, HttpRequest
from ts_frontend.http.router import Route
from ts_frontend.tokens import KeyKind

OCTETS = b"application/octet-stream"
HEADER_LENGTH = b"Inference-Header-Content-Length"


def routes(planes: Planes) -> HttpRoutes:
    api = OpenInferenceApi(planes)

    def route(method: str, pattern: str, handler: Handler) -> Route:
        checked = guarded(handler, planes.tokens, KeyKind.INFERENCE)
        return Route(method, pattern, _answering_errors(checked))

    model = "/v2/models/{model_name}"
    version = f"{model}/versions/{{model_version}}"
    return HttpRoutes(
        inference=[
            route("GET", "/v2", api.server_metadata),
            route("GET", "/v2/health/live", api.live),
            route("GET", "/v2/health/ready", api.ready),
            *(
                route(method, base + end, handler)
                for base in (model, version)
                for method, end, handler in (
                    ("POST", "/infer", api.infer),
                    ("GET", "/ready", api.model_ready),
                    ("GET", "", api.model_metadata),
                )
            ),
        ]
    )


class OpenInferenceApi:
    def __init__(self, planes: Planes) -> None:
        self._planes = planes
        self._catalog = TensorCatalog(planes.data)

    def live(self, request: HttpRequest) -> None:
        respond_json(request, schema.Live(True))

    def ready(self, request: HttpRequest) -> None:
        is_ready = self._planes.health.is_healthy
        respond_json(request, schema.Ready(is_ready), 200 if is_ready else 503)

    def server_metadata(self, request: HttpRequest) -> None:
        respond_json(
            request,
            schema.ServerMetadata(
                schema.SERVER_NAME,
                self._planes.version,
                schema.TORCHSERVE_EXTENSIONS,
                schema.EXTENSIONS,
            ),
        )

    def model_ready(self, request: HttpRequest) -> None:
        model = self._model(request)
        is_ready = self._planes.health.has_wanted_workers(model)
        answer = schema.ModelReady(model.id.name, is_ready)
        respond_json(request, answer, 200 if is_ready else 503)

    async def model_metadata(self, request: HttpRequest) -> None:
        model = self._model(request)
        inputs, outputs = await self._catalog.tensors(model)
        versions = [
            other.id.version for other in self._planes.control.registry.versions(model.id.name)
        ]
        respond_json(request, schema.ModelMetadata(model.id.name, versions, "", inputs, outputs))

    async def infer(self, request: HttpRequest) -> None:
        model = self._model(request)
        if (request.header(b"content-encoding") or b"identity").lower() != b"identity":
            raise InvalidArgument("A compressed body is not understood.")
        call = await offloaded(
            len(request.body),
            convert.read_http,
            request.body,
            request.header(HEADER_LENGTH.lower()),
            model,
        )
        name, version = _name_and_version(request)
        inference = InferenceRequest(
            request.id.encode(),
            [*request.headers, PREDICT_HEADER],
            [Part(b"body", JSON, call.body)],
        )
        stream = self._planes.data.predict(name, version, inference, arrived_s=request.arrived_s)
        chunks = await stream.wait_complete()
        await _answer(request, call, model, chunks)

    def _model(self, request: HttpRequest) -> Model:
        return self._planes.data.resolve(*_name_and_version(request))


async def _answer(
    request: HttpRequest, call: convert.InferCall, model: Model, chunks: Sequence[ResponseChunk]
) -> None:
    """What the handler answered goes out as it is where nothing else is asked for: its status, its
    headers, also a body of a form of its own.
    """
    first = chunks[0]
    body = convert.joined(chunks)
    headers = [header for header in first.headers if header[0].lower() != b"content-type"]
    status = first.status if 100 <= first.status <= 999 else 500
    content_type: bytes | None = first.content_type or None
    if status == 200:
        content_type = content_type or JSON
        if not call.takes_answer_as_it_is:
            body, json_bytes = await offloaded(len(body), _rewritten, body, call, model)
            content_type = JSON
            if json_bytes is not None:
                content_type = OCTETS
                headers.append((HEADER_LENGTH, str(json_bytes).encode()))
    request.respond(status, body, content_type=content_type, headers=headers, reason=first.reason)


def _rewritten(body: bytes, call: convert.InferCall, model: Model) -> tuple[bytes, int | None]:
    return convert.write_http(convert.read_answer(body), call, model)


def _name_and_version(request: HttpRequest) -> tuple[str, str | None]:
    params = request.params
    return params[0], params[1] if len(params) > 1 else None


def _answering_errors(handler: Handler) -> Handler:
    """`handler`, whose failures are answered in the protocol's form instead of the house's."""

    def run(request: HttpRequest) -> Awaitable[None] | None:
        try:
            result = handler(request)
        except Exception as error:
            answer_error(request, error)
            return None
        return None if result is None else _finish(request, result)

    return run


async def _finish(request: HttpRequest, answering: Awaitable[None]) -> None:
    try:
        await answering
    except Exception as error:
        if request.is_answered:
            raise
        answer_error(request, error)
