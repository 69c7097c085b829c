"""TorchServe's two gRPC services over the planes (contract, gRPC sections 2 and 3).

Headers that a handler sets never reach the client: so it is in TorchServe. The method names are the
protocol's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import grpc
import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status as RpcStatus

from ts_frontend.control_plane import Registration, parse_metadata
from ts_frontend.core.errors import InvalidArgument, ModelError, ServingError
from ts_frontend.core.inference import Header, InferenceRequest, Part, ResponseChunk
from ts_frontend.core.response_stream import ResponseStream
from ts_frontend.dialects.base import GrpcServices, Planes
from ts_frontend.dialects.inference_grpc import (
    MAX_ERROR_BYTES,
    deadline_s,
    new_request_id,
    request_headers,
)
from ts_frontend.dialects.json_body import pretty_json
from ts_frontend.dialects.torchserve import convert
from ts_frontend.dialects.torchserve.grpc_errors import (
    Failure,
    ModelApiDisabled,
    inference_failure,
    management_status,
    torchserve_inference_failure,
)
from ts_frontend.dialects.torchserve.schema import ModelItem, ModelList, StatusBody
from ts_frontend.grpc.service import Service
from ts_frontend.grpc.stubs import inference_pb2_grpc, management_pb2_grpc
from ts_frontend.grpc.stubs.inference_pb2 import (
    PredictionResponse,
    PredictionsRequest,
    TorchServeHealthResponse,
)
from ts_frontend.grpc.stubs.management_pb2 import (
    DescribeModelRequest,
    ListModelsRequest,
    ManagementResponse,
    RegisterModelRequest,
    ScaleWorkerRequest,
    SetDefaultRequest,
    UnregisterModelRequest,
)

Context = grpc.aio.ServicerContext[Any, Any]

INFERENCE_SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
MANAGEMENT_SERVICE = "org.pytorch.serve.grpc.management.ManagementAPIsService"

# Of one StreamPredictions2 call: their ids are remembered as long as it lasts.
MAX_SEQUENCES = 10_000


def services(planes: Planes) -> GrpcServices:
    inference, management = InferenceServicer(planes), ManagementServicer(planes)
    return GrpcServices(
        inference=[
            Service(
                INFERENCE_SERVICE,
                lambda server: inference_pb2_grpc.add_InferenceAPIsServiceServicer_to_server(
                    inference, server
                ),
                lambda error: inference.failure_of(error).status(),
            )
        ],
        management=[
            Service(
                MANAGEMENT_SERVICE,
                lambda server: management_pb2_grpc.add_ManagementAPIsServiceServicer_to_server(
                    management, server
                ),
                management_status,
            )
        ],
    )


class InferenceServicer:
    def __init__(self, planes: Planes) -> None:
        self._planes = planes
        self._is_torchserve = planes.has_torchserve_grpc_errors
        self.failure_of: Callable[[ServingError], Failure] = (
            torchserve_inference_failure if self._is_torchserve else inference_failure
        )

    async def Ping(self, request: Empty, context: Context) -> TorchServeHealthResponse:
        word = "Healthy" if self._planes.health.is_healthy else "Unhealthy"
        return TorchServeHealthResponse(health=_pretty_text(StatusBody(word)))

    async def Predictions(
        self, request: PredictionsRequest, context: Context
    ) -> PredictionResponse:
        headers = request_headers(context, self._planes)
        chunks = await self._predict(request, context, headers).wait_complete()
        body = _joined(chunks)
        self._check_status(chunks[0].status, body)
        return PredictionResponse(prediction=body)

    async def StreamPredictions(self, request: PredictionsRequest, context: Context) -> None:
        headers = request_headers(context, self._planes)
        await self._write_each(self._predict(request, context, headers), context)

    async def StreamPredictions2(
        self, requests: AsyncIterator[PredictionsRequest], context: Context
    ) -> None:
        """The next request is read when the last one is answered: a sequence keeps its order, and
        a client that sends faster than the model works is held back by gRPC's flow control.
        """
        begun: set[str] = set()
        own = self._planes.sequence_headers
        shared = [
            header for header in request_headers(context, self._planes) if header[0] not in own
        ]
        async for request in requests:
            try:
                headers = [*shared, *self._sequence_headers(request.sequence_id, begun)]
                await self._write_each(self._predict(request, context, headers), context)
            except ServingError as error:
                status = _in_band(self.failure_of(error))
                await context.write(PredictionResponse(status=status))

    def _sequence_headers(self, sequence_id: str, begun: set[str]) -> list[Header]:
        """The sequence's id, and for its first request on this stream that it starts.

        Which request is the last one only the client knows, and TorchServe's messages cannot say.
        begun: the sequences of this stream so far; gets this one.
        """
        if not sequence_id:
            raise InvalidArgument("Parameter sequenceId is required.")
        keys = self._planes.sequence_headers
        headers = [(keys.id, sequence_id.encode())]
        if sequence_id not in begun:
            if len(begun) >= MAX_SEQUENCES:
                raise InvalidArgument(f"A stream serves at most {MAX_SEQUENCES} sequences.")
            begun.add(sequence_id)
            headers.append((keys.start, b"true"))
        return headers

    def _predict(
        self, request: PredictionsRequest, context: Context, headers: Sequence[Header]
    ) -> ResponseStream:
        if not request.model_name:
            raise InvalidArgument("Parameter model_name is required.")
        parts = [Part(name.encode(), b"", value) for name, value in request.input.items()]
        return self._planes.data.predict(
            request.model_name,
            request.model_version or None,
            InferenceRequest(new_request_id(), headers, parts),
            deadline_s=deadline_s(context),
        )

    async def _write_each(self, stream: ResponseStream, context: Context) -> None:
        """One message per piece; a client that leaves cancels the job."""
        try:
            async for chunk in stream:
                body = bytes(chunk.body)
                self._check_status(chunk.status, body)
                await context.write(PredictionResponse(prediction=body))
        finally:
            stream.cancel()

    def _check_status(self, status: int, body: bytes) -> None:
        """A handler's word that its answer is a failure; TorchServe does not listen to it."""
        if status >= 400 and not self._is_torchserve:
            raise ModelError(status, body[:MAX_ERROR_BYTES].decode(errors="replace"))


class ManagementServicer:
    def __init__(self, planes: Planes) -> None:
        self._planes = planes
        self._control = planes.control
        self._describe = partial(convert.describe, has_local_times=planes.has_local_times)

    async def DescribeModel(
        self, request: DescribeModelRequest, context: Context
    ) -> ManagementResponse:
        name = request.model_name
        if request.model_version == "all":
            reports = self._control.describe_all(name)
            return _document([self._describe(report) for report in reports])
        report = self._control.describe(name, request.model_version or None)
        if not request.customized:
            return _document([self._describe(report)])
        chunks = await self._planes.data.describe(report.model, new_request_id()).wait_complete()
        return _document([self._describe(report, parse_metadata(_joined(chunks)))])

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ManagementResponse:
        # TorchServe takes the 0 of a client that gave no limit for one, and lists nothing.
        limit = request.limit if 0 < request.limit <= convert.DEFAULT_PAGE else convert.DEFAULT_PAGE
        page = self._control.list_models(limit, max(0, request.next_page_token))
        items = [ModelItem(model.id.name, model.url) for model in page.models]
        return _document(ModelList(next_page_token=page.next_token, models=items))

    async def RegisterModel(
        self, request: RegisterModelRequest, context: Context
    ) -> ManagementResponse:
        if not self._planes.is_model_api_enabled:
            raise ModelApiDisabled
        if not request.url:
            raise InvalidArgument("Parameter url is required.")
        scaled = await self._control.register(
            Registration(
                url=request.url,
                model_name=request.model_name or None,
                handler=request.handler or None,
                runtime=request.runtime or None,
                batch_size=_given(request.batch_size),
                max_batch_delay_ms=_given(request.max_batch_delay),
                response_timeout_s=_given(request.response_timeout),
                startup_timeout_s=_given(request.startup_timeout),
                initial_workers=_given(request.initial_workers),
                is_synchronous=request.synchronous,
                s3_sse_kms=request.s3_sse_kms,
            )
        )
        return ManagementResponse(msg=convert.registered_text(scaled)[1])

    async def ScaleWorker(
        self, request: ScaleWorkerRequest, context: Context
    ) -> ManagementResponse:
        name, version = request.model_name, request.model_version or None
        low = _given(request.min_worker)
        if low is None:
            # A 0 that was sent, which only clients of newer stubs can do, is meant.
            is_zero = request.HasField("min_worker") and request.min_worker == 0
            low = 0 if is_zero else 1
        high = _given(request.max_worker) or low
        scaled = await self._control.scale(name, version, low, high, request.synchronous)
        return ManagementResponse(msg=convert.scaled_text(scaled, name, version, low)[1])

    async def SetDefault(self, request: SetDefaultRequest, context: Context) -> ManagementResponse:
        self._control.set_default(request.model_name, request.model_version)
        return ManagementResponse(
            msg=convert.default_set_text(request.model_name, request.model_version)
        )

    async def UnregisterModel(
        self, request: UnregisterModelRequest, context: Context
    ) -> ManagementResponse:
        if not self._planes.is_model_api_enabled:
            raise ModelApiDisabled
        if not request.model_name:
            # TorchServe's text, although it is the name that is missing.
            raise InvalidArgument("Parameter url is required.")
        await self._control.unregister(request.model_name, request.model_version or None)
        return ManagementResponse(msg=convert.unregistered_text(request.model_name))


def _given(value: int) -> int | None:
    return value if value > 0 else None


def _joined(chunks: Sequence[ResponseChunk]) -> bytes:
    if len(chunks) == 1:
        return bytes(chunks[0].body)
    return b"".join(chunk.body for chunk in chunks)


def _pretty_text(value: Any) -> str:
    return pretty_json(value).decode().rstrip("\n")


def _document(value: msgspec.Struct | Sequence[msgspec.Struct]) -> ManagementResponse:
    return ManagementResponse(msg=_pretty_text(value))


def _in_band(failure: Failure) -> RpcStatus:
    """A failure as a message of the stream, which goes on."""
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason=failure.marker))
    return RpcStatus(code=failure.code.value[0], message=failure.message, details=[detail])
