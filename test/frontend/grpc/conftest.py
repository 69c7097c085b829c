"""Real gRPC servers on loopback, real clients."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from ts_frontend.grpc.server import GrpcServer
from ts_frontend.grpc.service import Service, Status
from ts_frontend.grpc.stubs.inference_pb2 import PredictionResponse, TorchServeHealthResponse
from ts_frontend.grpc.stubs.inference_pb2_grpc import add_InferenceAPIsServiceServicer_to_server


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[GrpcServer]]]:
    """Starts servers of any services; stops them at the end."""
    servers = []

    async def start(*services: Any, port: int = 0, **options: Any) -> GrpcServer:
        server = GrpcServer("127.0.0.1", port, services, **options)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop(0)


@pytest.fixture
async def channel_to() -> AsyncIterator[Callable[..., grpc.aio.Channel]]:
    channels = []

    def connect(server: GrpcServer, **options: Any) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(server.address, **options)
        channels.append(channel)
        return channel

    yield connect
    for channel in channels:
        await channel.close()


class Servicer:
    """TorchServe's inference service, played: each call runs what the test gave."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.ping: Callable[[Any], Awaitable[Any]] | None = None
        self.stream: Callable[[Any], Awaitable[None]] | None = None
        self.before_answer: Callable[[], Awaitable[None]] | None = None

    async def Ping(self, request: Any, context: Any) -> TorchServeHealthResponse:
        self.seen.append("Ping")
        if self.ping is not None:
            await self.ping(context)
        return TorchServeHealthResponse(health="fine")

    async def Predictions(self, request: Any, context: Any) -> PredictionResponse:
        self.seen.append("Predictions")
        return PredictionResponse(prediction=request.input["data"])

    async def StreamPredictions(self, request: Any, context: Any) -> None:
        self.seen.append("StreamPredictions")
        if self.stream is not None:
            await self.stream(context)
        await context.write(PredictionResponse(prediction=b"1"))
        await context.write(PredictionResponse(prediction=b"2"))

    async def StreamPredictions2(self, requests: Any, context: Any) -> None:
        self.seen.append("StreamPredictions2")
        async for request in requests:
            if self.before_answer is not None:
                await self.before_answer()
            await context.write(PredictionResponse(prediction=request.input["data"]))

    def service(self) -> Service:
        return Service(
            INFERENCE,
            lambda server: add_InferenceAPIsServiceServicer_to_server(self, server),
            lambda error: Status(grpc.StatusCode.ABORTED, f"told: {error.message}"),
        )


INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def pem(tmp_path: Path) -> tuple[str, str]:
    """Certificate and key for 127.0.0.1, as files."""
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
