"""grpc.health.v1: what load balancers and Kubernetes ask a gRPC server.

The empty service name stands for the server, the others for the services on the same port. All give
the same answer, since all are served by the same models. The method names are the protocol's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

SERVICE = "grpc.health.v1.Health"
WATCH_INTERVAL_S = 1.0

Context = grpc.aio.ServicerContext[Any, Any]


class HealthServicer:
    """is_healthy: asked anew for each check, so that nobody has to report changes."""

    def __init__(self, services: Iterable[str], is_healthy: Callable[[], bool]) -> None:
        self._services = frozenset(("", *services))
        self._is_healthy = is_healthy
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """From here on nothing is served: clients go elsewhere, watches end."""
        self._stopping.set()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return HealthCheckResponse(status=self._status(request.service))

    async def List(self, request: Any, context: Context) -> Any:
        """Asked for by newer versions of the protocol only, whose library knows the answer."""
        answers = {
            service: HealthCheckResponse(status=self._status(service)) for service in self._services
        }
        return getattr(health_pb2, "HealthListResponse")(statuses=answers)  # noqa: B009

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:
        told: int | None = None
        while True:
            is_stopping = self._stopping.is_set()  # before the write, which may wait
            status = self._status(request.service)
            if status != told:
                await context.write(HealthCheckResponse(status=status))
                told = status
            if is_stopping:
                return
            try:
                async with asyncio.timeout(WATCH_INTERVAL_S):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    def _status(self, service: str) -> Any:
        if service not in self._services:
            return HealthCheckResponse.SERVICE_UNKNOWN
        is_serving = not self._stopping.is_set() and self._is_healthy()
        return HealthCheckResponse.SERVING if is_serving else HealthCheckResponse.NOT_SERVING
