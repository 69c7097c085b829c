"""The protocol's REST form (contract, HTTP section 4.5, and what TorchServe does not answer:
versions, metadata, readiness of a model, binary tensors).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from ts.protocol.tensors import BINARY_CONTENT_TYPE, JSON_LENGTH_HEADER
from ts_frontend.core.inference import PREDICT_HEADER, Header, InferenceRequest, ResponseChunk
from ts_frontend.core.model import Model
from ts_frontend.dialects.base import HttpRoutes, Planes, guarded
from ts_frontend.dialects.json_body import JSON, respond_json
from ts_frontend.dialects.open_inference import compression, convert, schema
from ts_frontend.dialects.open_inference import openapi as doc
from ts_frontend.dialects.open_inference.errors import answer_error, transport_error
from ts_frontend.dialects.open_inference.metadata import TensorCatalog
from ts_frontend.dialects.open_inference.offload import offloaded
from ts_frontend.http.openapi import Operation
from ts_frontend.http.request import Handler, HttpRequest
from ts_frontend.http.router import Route
from ts_frontend.tokens import KeyKind

OCTETS = BINARY_CONTENT_TYPE.encode()
HEADER_LENGTH = JSON_LENGTH_HEADER.encode()


def routes(planes: Planes) -> HttpRoutes:
    api = OpenInferenceApi(planes)

    def route(method: str, pattern: str, handler: Handler, operation: Operation) -> Route:
        checked = guarded(handler, planes.tokens, KeyKind.INFERENCE)
        return Route(method, pattern, _answering_errors(checked), operation, transport_error)

    model = "/v2/models/{model_name}"
    version = f"{model}/versions/{{model_version}}"
    return HttpRoutes(
        inference=[
            route("GET", "/v2", api.server_metadata, doc.SERVER_METADATA),
            route("GET", "/v2/health/live", api.live, doc.SERVER_LIVE),
            route("GET", "/v2/health/ready", api.ready, doc.SERVER_READY),
            *(
                route(method, base + end, handler, form(operation))
                for base, form in ((model, doc.of_default), (version, doc.of_version))
                for method, end, handler, operation in (
                    ("POST", "/infer", api.infer, doc.MODEL_INFER),
                    ("GET", "/ready", api.model_ready, doc.MODEL_READY),
                    ("GET", "", api.model_metadata, doc.MODEL_METADATA),
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
        is_ready = self._planes.health.can_serve(model)
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
        body = request.body
        headers = request.headers
        encoding = request.header(b"content-encoding")
        if encoding is not None:
            limit = self._planes.max_body_bytes
            # A small body may stand for one of the whole limit.
            body = await offloaded(limit, compression.decompressed, body, encoding, limit)
            headers = [header for header in headers if header[0].lower() != b"content-encoding"]
        length = request.header(HEADER_LENGTH.lower())
        call = await offloaded(len(body), convert.read_http, body, length, model)
        name, version = _name_and_version(request)
        inference = InferenceRequest(
            request.id.encode(),
            [*headers, PREDICT_HEADER],
            call.parts(),
        )
        stream = self._planes.data.predict(name, version, inference, arrived_s=request.arrived_s)
        chunks = await stream.wait_complete()
        await _answer(request, call, model, chunks, self._planes.min_compressed_bytes)

    def _model(self, request: HttpRequest) -> Model:
        return self._planes.data.resolve(*_name_and_version(request))


async def _answer(
    request: HttpRequest,
    call: convert.InferCall,
    model: Model,
    chunks: Sequence[ResponseChunk],
    min_compressed_bytes: int,
) -> None:
    """What the handler answered goes out as it is where nothing else is asked for: its status, its
    headers, also a body of a form of its own.

    min_compressed_bytes: smaller bodies are not compressed; 0: none is.
    """
    first = chunks[0]
    body = convert.joined(chunks)
    headers = [header for header in first.headers if header[0].lower() != b"content-type"]
    status = first.status if 100 <= first.status <= 999 else 500
    content_type: bytes | None = first.content_type or None
    if status == 200:
        content_type = content_type or JSON
        if not call.takes_answer_as_it_is:
            answer_length = convert.json_length(headers)
            body, json_bytes = await offloaded(
                len(body), _rewritten, body, answer_length, call, model
            )
            headers = [header for header in headers if header[0].lower() != HEADER_LENGTH.lower()]
            content_type = JSON
            if json_bytes is not None:
                content_type = OCTETS
                headers.append((HEADER_LENGTH, str(json_bytes).encode()))
    if 0 < min_compressed_bytes <= len(body):
        encoding = compression.chosen_encoding(request.header(b"accept-encoding"))
        if encoding is not None and not _has(headers, b"content-encoding"):
            body = await offloaded(len(body), compression.compressed, body, encoding)
            headers.append((b"content-encoding", encoding.encode()))
    request.respond(status, body, content_type=content_type, headers=headers, reason=first.reason)


def _has(headers: Sequence[Header], name: bytes) -> bool:
    return any(key.lower() == name for key, _ in headers)


def _rewritten(
    body: bytes, json_length: int | None, call: convert.InferCall, model: Model
) -> tuple[bytes, int | None]:
    return convert.write_http(convert.read_answer(body, json_length), call, model)


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
