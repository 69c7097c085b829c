"""The floor: `benchmarks/floor`, the least that could serve."""

from __future__ import annotations

import socket
from pathlib import Path

from benchmarks import payloads
from benchmarks.load.clients import Request
from benchmarks.servers.base import (
    GrpcCall,
    Launch,
    Ports,
    RunningServer,
    ServerKind,
    in_environment,
)
from benchmarks.works import Measure, Work

_FLOOR = Path(__file__).resolve().parents[1] / "floor"


class Floor(ServerKind):
    def why_missing(self) -> str:
        found = in_environment(self.python, "import uvloop, httptools; print(1)")
        return "" if found else f"uvloop and httptools are not installed in {self.python}"

    def version(self) -> str:
        return "the floor (benchmarks/floor)"

    def why_not(self, work: Work) -> str:
        if work.measure is Measure.GRPC:
            found = in_environment(self.python, "import grpc; print(1)")
            return "" if found else f"grpcio is not installed in {self.python}"
        if work.deployment.task not in ("echo", "stream"):
            return "only echoes and streams"
        if work.deployment.workers > 1:
            return "has one worker"
        return super().why_not(work)

    def command(self, work: Work, folder: Path, ports: Ports) -> Launch:
        if work.measure is Measure.GRPC:
            return Launch([self.python, str(_FLOOR / "grpc_echo.py"), str(ports.grpc)], {})
        deployment = work.deployment
        words = [self.python, str(_FLOOR / "frontend.py"), str(ports.http)]
        return Launch([*words, str(deployment.batch_size), deployment.task], {})

    def request(self, work: Work) -> Request:
        return Request("POST", "/", {}, payloads.body(work.payload))

    def grpc_call(self, work: Work) -> GrpcCall:
        body = payloads.body(work.payload)
        return GrpcCall("/floor/Echo", body, body)

    def check(self, server: RunningServer, work: Work, request: Request) -> str:
        if work.measure is not Measure.GRPC:
            return super().check(server, work, request)
        try:
            socket.create_connection(("127.0.0.1", server.ports.grpc), timeout=5).close()
        except OSError as error:
            return f"no connection: {error}"
        return ""
