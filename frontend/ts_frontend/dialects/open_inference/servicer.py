"""The protocol's gRPC form, under its standard name and under TorchServe's.

The method names are the protocol's.
"""

from __future__ import annotations

from typing import Any

import grpc

from ts_frontend.core.errors import InvalidArgument, ModelError
from ts_frontend.core.inference import InferenceRequest
from ts_frontend.core.model import Model
from ts_frontend.dialects.base import GrpcServices, Planes
from ts_frontend.dialects.inference_grpc import (
    MAX_ERROR_BYTES,
    deadline_s,
    new_request_id,
    request_headers,
)
from ts_frontend.dialects.open_inference import convert, schema
from ts_frontend.dialects.open_inference.grpc_convert import read_message, write_message
from ts_frontend.dialects.open_inference.grpc_errors import status_of
from ts_frontend.dialects.open_inference.metadata import TensorCatalog
from ts_frontend.dialects.open_inference.offload import offloaded
from ts_frontend.grpc.service import Service
from ts_frontend.grpc.stubs import (
    open_inference_grpc_pb2,
    open_inference_grpc_pb2_grpc,
    open_inference_pb2,
    open_inference_pb2_grpc,
)
from ts_frontend.grpc.stubs.open_inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)

Context = grpc.aio.ServicerContext[Any, Any]

# Read from the descriptors, which reflection finds only where their modules are imported; the
# generated service of the second does not import its own, whose messages are the first's.
STANDARD_SERVICE, TORCHSERVE_SERVICE = (
    module.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
    for module in (open_inference_pb2, open_inference_grpc_pb2)
)


def services(planes: Planes) -> GrpcServices:
    servicer = OpenInferenceServicer(planes)
    return GrpcServices(
        inference=[
            Service(
                STANDARD_SERVICE,
                lambda server: open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
                    servicer, server
                ),
                status_of,
            ),
            Service(
                TORCHSERVE_SERVICE,
                lambda server: (
                    open_inference_grpc_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
                        servicer, server
                    )
                ),
                status_of,
            ),
        ]
    )


class OpenInferenceServicer:
    def __init__(self, planes: Planes) -> None:
        self._planes = planes
        self._catalog = TensorCatalog(planes.data)

    async def ServerLive(self, request: ServerLiveRequest, context: Context) -> ServerLiveResponse:
        return ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: ServerReadyRequest, context: Context
    ) -> ServerReadyResponse:
        return ServerReadyResponse(ready=self._planes.health.is_healthy)

    async def ServerMetadata(
        self, request: ServerMetadataRequest, context: Context
    ) -> ServerMetadataResponse:
        return ServerMetadataResponse(
            name=schema.SERVER_NAME, version=self._planes.version, extensions=schema.EXTENSIONS
        )

    async def ModelReady(self, request: ModelReadyRequest, context: Context) -> ModelReadyResponse:
        if not request.name:
            raise InvalidArgument("Parameter name is required.")
        model = self._model(request.name, request.version)
        return ModelReadyResponse(ready=self._planes.health.can_serve(model))

    async def ModelMetadata(
        self, request: ModelMetadataRequest, context: Context
    ) -> ModelMetadataResponse:
        if not request.name:
            raise InvalidArgument("Parameter model_name is required.")
        model = self._model(request.name, request.version)
        inputs, outputs = await self._catalog.tensors(model)
        return ModelMetadataResponse(
            name=model.id.name,
            versions=[
                other.id.version for other in self._planes.control.registry.versions(model.id.name)
            ],
            inputs=_messages(inputs),
            outputs=_messages(outputs),
        )

    async def ModelInfer(self, request: ModelInferRequest, context: Context) -> ModelInferResponse:
        if not request.model_name:
            raise InvalidArgument("Parameter model_name is required.")
        model = self._model(request.model_name, request.model_version)
        until_s = deadline_s(context)
        call = await offloaded(request.ByteSize(), read_message, request, model)
        stream = self._planes.data.predict(
            request.model_name,
            request.model_version or None,
            InferenceRequest(
                new_request_id(), request_headers(context, self._planes), call.parts()
            ),
            deadline_s=until_s,
        )
        chunks = await stream.wait_complete()
        body = convert.joined(chunks)
        if chunks[0].status >= 400:
            raise ModelError(chunks[0].status, body[:MAX_ERROR_BYTES].decode(errors="replace"))
        json_length = convert.json_length(chunks[0].headers)
        return await offloaded(len(body), _answered, body, json_length, call, model)

    def _model(self, name: str, version: str) -> Model:
        return self._planes.data.resolve(name, version or None)


def _answered(
    body: bytes, json_length: int | None, call: convert.InferCall, model: Model
) -> ModelInferResponse:
    return write_message(convert.read_answer(body, json_length), call, model)


def _messages(
    tensors: list[schema.TensorMetadata],
) -> list[ModelMetadataResponse.TensorMetadata]:
    return [
        ModelMetadataResponse.TensorMetadata(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
        )
        for tensor in tensors
    ]
