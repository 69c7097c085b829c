"""TorchServe's REST API as route handlers (contract, HTTP sections 4, 5 and 10).

Prediction handlers are plain functions: they put the request on its way and return; the answer is
written by `convert.Answer` when the worker's reply comes in. Management handlers are coroutines.
"""

from __future__ import annotations

from functools import partial

from ts_frontend.control_plane import parse_metadata
from ts_frontend.core.errors import InvalidArgument, MethodNotAllowed, RouteNotFound
from ts_frontend.core.inference import InferenceRequest
from ts_frontend.dialects.base import Planes
from ts_frontend.dialects.inference_http import send, to_inference_request
from ts_frontend.dialects.json_body import JSON, respond_json
from ts_frontend.dialects.torchserve import convert, openapi
from ts_frontend.dialects.torchserve.schema import (
    ModelItem,
    ModelList,
    NotReadyBody,
    NotReadyItem,
    StatusBody,
)
from ts_frontend.health import NotReady
from ts_frontend.http.request import HttpRequest
from ts_frontend.rollout.plan import parse_plan
from ts_frontend.tokens import TokenAuthority

PROMETHEUS_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


def respond_status(request: HttpRequest, text: str, status: int = 200) -> None:
    respond_json(request, StatusBody(text), status)


class InferenceApi:
    def __init__(self, planes: Planes) -> None:
        self._planes = planes

    # /predictions/{model}[/{version}[/{rest}]] and /explanations/...

    def predict(self, request: HttpRequest) -> None:
        self._run(request, explain=False)

    def explain(self, request: HttpRequest) -> None:
        self._run(request, explain=True)

    def _run(self, request: HttpRequest, *, explain: bool) -> None:
        params = request.params
        version = params[1] if len(params) > 1 else None
        if request.method == "OPTIONS":
            self.describe_model_api(request, params[0], version)
            return
        inference = to_inference_request(
            request,
            explain=explain,
            url_path=params[2] if len(params) > 2 else "",
            max_parts=self._planes.max_multipart_parts,
        )
        send(self._planes.data, request, params[0], version, inference)

    # The SageMaker and legacy forms: the query's parameters reach the handler too.

    def invocations(self, request: HttpRequest) -> None:
        inference = self._with_query(request)
        name = dict(request.query_params()).get("model_name")
        if not name:
            loaded = [
                model for model in self._planes.control.registry if model.is_loaded_at_startup
            ]
            if len(loaded) == 1:
                name = loaded[0].id.name
        if not name:
            name = next(
                (
                    bytes(part.body).decode()
                    for part in inference.parts
                    if part.name == b"model_name"
                ),
                None,
            )
        if not name:
            raise InvalidArgument("Parameter model_name is required.")
        send(self._planes.data, request, name, None, inference)

    def predict_with_query(self, request: HttpRequest) -> None:
        params = request.params
        version = params[1] if len(params) > 1 else None
        if request.method == "OPTIONS":
            self.describe_model_api(request, params[0], version)
            return
        send(self._planes.data, request, params[0], version, self._with_query(request))

    def _with_query(self, request: HttpRequest) -> InferenceRequest:
        return to_inference_request(
            request, with_query=True, max_parts=self._planes.max_multipart_parts
        )

    # /v2/models/{model}/infer and /explain, as TorchServe has always served them.

    def infer_v2(self, request: HttpRequest) -> None:
        self._run_default_version(request, explain=False)

    def explain_v2(self, request: HttpRequest) -> None:
        self._run_default_version(request, explain=True)

    def _run_default_version(self, request: HttpRequest, *, explain: bool) -> None:
        if request.method == "OPTIONS":
            self.describe_model_api(request, request.params[0], None)
            return
        inference = to_inference_request(
            request, explain=explain, max_parts=self._planes.max_multipart_parts
        )
        send(self._planes.data, request, request.params[0], None, inference)

    def ping(self, request: HttpRequest) -> None:
        if self._planes.health.is_healthy:
            respond_status(request, "Healthy")
        else:
            respond_status(request, "Unhealthy", 500)

    def live(self, request: HttpRequest) -> None:
        """Ours: the server answers, whatever its models do."""
        respond_status(request, "Live")

    async def ready(self, request: HttpRequest) -> None:
        """Ours: requests for each model would be answered, as a ping of its workers shows."""
        self._respond_ready(request, await self._planes.health.find_not_ready())

    async def model_ready(self, request: HttpRequest) -> None:
        """Ours: the same of one model."""
        name, *version = request.params
        model = self._planes.data.resolve(name, version[0] if version else None)
        reason = await self._planes.health.find_why_not_ready(model)
        self._respond_ready(request, [NotReady(*model.id, reason)] if reason else [])

    @staticmethod
    def _respond_ready(request: HttpRequest, found: list[NotReady]) -> None:
        if not found:
            respond_status(request, "Ready")
            return
        items = [NotReadyItem(*item) for item in found]
        respond_json(request, NotReadyBody("Not ready", items), 503)

    def describe_model_api(self, request: HttpRequest, name: str, version: str | None) -> None:
        model = self._planes.data.resolve(name, version)
        respond_json(request, openapi.model_inference_document(model.id.name))


class ManagementApi:
    def __init__(self, planes: Planes) -> None:
        self._planes = planes
        self._control = planes.control
        self._describe = partial(convert.describe, has_local_times=planes.has_local_times)

    def list_models(self, request: HttpRequest) -> None:
        limit, offset = convert.page_bounds(request)
        page = self._control.list_models(limit, offset)
        items = [ModelItem(model.id.name, model.url) for model in page.models]
        respond_json(request, ModelList(next_page_token=page.next_token, models=items))

    async def register(self, request: HttpRequest) -> None:
        if not self._planes.is_model_api_enabled:
            raise MethodNotAllowed
        scaled = await self._control.register(convert.registration(request))
        status, text = convert.registered_text(scaled)
        respond_status(request, text, status)

    async def describe(self, request: HttpRequest) -> None:
        name = request.params[0]
        version = request.params[1] if len(request.params) > 1 else None
        if version == "all":
            reports = self._control.describe_all(name)
            respond_json(request, [self._describe(report) for report in reports])
            return
        report = self._control.describe(name, version)
        if not convert.is_true(dict(request.query_params()).get("customized"), False):
            respond_json(request, [self._describe(report)])
            return
        stream = self._planes.data.describe(report.model, request.id.encode())
        chunks = await stream.wait_complete()
        metadata = parse_metadata(b"".join(bytes(chunk.body) for chunk in chunks))
        respond_json(
            request,
            [self._describe(report, metadata)],
            chunks[0].status if 100 <= chunks[0].status <= 999 else 500,
        )

    async def scale(self, request: HttpRequest) -> None:
        query = dict(request.query_params())
        name = request.params[0]
        version = request.params[1] if len(request.params) > 1 else query.get("model_version")
        low = convert.int_or(query.get("min_worker"), 1)
        high = convert.int_or(query.get("max_worker"), low)
        is_synchronous = convert.is_true(query.get("synchronous"), False)
        scaled = await self._control.scale(name, version, low or 0, high or 0, is_synchronous)
        status, text = convert.scaled_text(scaled, name, version, low)
        respond_status(request, text, status)

    def set_default(self, request: HttpRequest) -> None:
        name, version = request.params
        self._control.set_default(name, version)
        respond_status(request, convert.default_set_text(name, version))

    # Ours: /models/{model}/rollout

    async def start_rollout(self, request: HttpRequest) -> None:
        if not self._planes.is_model_api_enabled:
            raise MethodNotAllowed
        plan = parse_plan(convert.parameters(request))
        report = await self._planes.rollouts.start(request.params[0], plan)
        respond_json(request, convert.rollout_item(report), 202)

    def list_rollouts(self, request: HttpRequest) -> None:
        reports = self._planes.rollouts.of(request.params[0])
        respond_json(request, [convert.rollout_item(report) for report in reports])

    def abort_rollout(self, request: HttpRequest) -> None:
        report = self._planes.rollouts.abort(request.params[0])
        respond_json(request, convert.rollout_item(report))

    async def unregister(self, request: HttpRequest) -> None:
        if not self._planes.is_model_api_enabled:
            raise MethodNotAllowed
        name = request.params[0]
        await self._control.unregister(name, request.params[1] if len(request.params) > 1 else None)
        respond_status(request, convert.unregistered_text(name))

    def describe_model_api(self, request: HttpRequest) -> None:
        name = request.params[0]
        version = request.params[1] if len(request.params) > 1 else None
        model = self._planes.data.resolve(name, version)
        respond_json(request, openapi.model_management_document(model.id.name))


class MetricsApi:
    def __init__(self, planes: Planes) -> None:
        self._planes = planes

    def metrics(self, request: HttpRequest) -> None:
        names = [
            value for name, value in request.query_params() if name in ("name[]", "name%5B%5D")
        ]
        request.respond(200, self._planes.render_metrics(names), content_type=PROMETHEUS_TEXT)


class TokenApi:
    def __init__(self, tokens: TokenAuthority) -> None:
        self._tokens = tokens

    def refresh(self, request: HttpRequest) -> None:
        wanted = dict(request.query_params()).get("type", "")
        self._tokens.refresh(wanted, request.header(b"authorization"))
        request.respond(200, b"\n", content_type=JSON)


def model_path_missing(request: HttpRequest) -> None:
    """`/predictions` and `/explanations` without a model."""
    raise RouteNotFound


def root(request: HttpRequest) -> None:
    """`/` with any method but OPTIONS."""
    raise MethodNotAllowed
