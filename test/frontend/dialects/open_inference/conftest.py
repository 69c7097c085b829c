"""The protocol's two doors on loopback over played planes, and clients of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import uvloop

sys.path.append(str(Path(__file__).resolve().parents[3]))  # fake_planes.py

from fake_planes import FakePlanes

from ts_frontend.dialects.errors import answer_error
from ts_frontend.dialects.open_inference import OpenInferenceDialect
from ts_frontend.dialects.torchserve import TorchServeDialect
from ts_frontend.grpc.server import GrpcServer
from ts_frontend.grpc.stubs import open_inference_grpc_pb2_grpc, open_inference_pb2_grpc
from ts_frontend.http.listener import Listener
from ts_frontend.http.router import Router
from ts_frontend.settings.addresses import parse_address


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def fakes(request: pytest.FixtureRequest) -> FakePlanes:
    """Indirect parameters are options of FakePlanes."""
    return FakePlanes(**getattr(request, "param", {}))


class RestClient:
    """requests, in a thread."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._session = requests.Session()

    async def get(self, path: str, **more: Any) -> requests.Response:
        return await asyncio.to_thread(self._session.get, self._base + path, timeout=20, **more)

    async def post(self, path: str, **more: Any) -> requests.Response:
        return await asyncio.to_thread(self._session.post, self._base + path, timeout=20, **more)

    async def infer(
        self,
        value: Any,
        *blobs: bytes,
        path: str = "/v2/models/m/infer",
        header_length: str | None = None,
        **headers: str,
    ) -> requests.Response:
        """value: the JSON; blobs follow it, announced by the protocol's header."""
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        headers = {"content-type": "application/json", **headers}
        if blobs or header_length is not None:
            headers["Inference-Header-Content-Length"] = header_length or str(len(text))
        return await self.post(path, data=text + b"".join(blobs), headers=headers)

    def close(self) -> None:
        self._session.close()


@pytest.fixture
async def rest(fakes: FakePlanes) -> AsyncIterator[RestClient]:
    """The inference listener as the server has it: this dialect in front of TorchServe's."""
    routes = [
        *OpenInferenceDialect().http_routes(fakes.planes).inference,
        *TorchServeDialect().http_routes(fakes.planes).inference,
    ]
    listener = Listener(parse_address("http://127.0.0.1:0"), Router(routes, answer_error))
    await listener.start()
    client = RestClient(str(listener.address))
    yield client
    client.close()
    await listener.stop(0)


@pytest.fixture(params=["standard", "torchserve"])
async def oip(fakes: FakePlanes, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A stub of the service, under either of its names."""
    services = OpenInferenceDialect().grpc_services(fakes.planes)
    server = GrpcServer("127.0.0.1", 0, services.inference)
    await server.start()
    stubs = {
        "standard": open_inference_pb2_grpc.GRPCInferenceServiceStub,
        "torchserve": open_inference_grpc_pb2_grpc.GRPCInferenceServiceStub,
    }
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield stubs[request.param](channel)
    await server.stop(0)
