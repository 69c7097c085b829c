"""TorchServe's gRPC services on loopback over played planes, and channels to them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import uvloop

sys.path.append(str(Path(__file__).resolve().parents[3]))  # fake_planes.py

from fake_planes import FakePlanes

from ts_frontend.dialects.torchserve import TorchServeDialect
from ts_frontend.grpc.server import GrpcServer
from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub
from ts_frontend.grpc.stubs.management_pb2_grpc import ManagementAPIsServiceStub


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def fakes(request: pytest.FixtureRequest) -> FakePlanes:
    """Indirect parameters are options of FakePlanes."""
    return FakePlanes(**getattr(request, "param", {}))


@pytest.fixture
async def grpc_api(fakes: FakePlanes) -> AsyncIterator[SimpleNamespace]:
    """inference and management: stubs."""
    services = TorchServeDialect().grpc_services(fakes.planes)
    api = SimpleNamespace()
    servers, channels = [], []
    for name, its_services, stub in (
        ("inference", services.inference, InferenceAPIsServiceStub),
        ("management", services.management, ManagementAPIsServiceStub),
    ):
        server = GrpcServer("127.0.0.1", 0, its_services)
        await server.start()
        servers.append(server)
        channel = grpc.aio.insecure_channel(server.address)
        channels.append(channel)
        setattr(api, name, stub(channel))
    yield api
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(0)
