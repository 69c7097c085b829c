"""`GrpcServer`: one gRPC port with its services, beside them health and reflection."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ts_frontend.core.errors import ServingError
from ts_frontend.grpc import health
from ts_frontend.grpc.interceptors import Authorize, Doorkeeper, OnFinished
from ts_frontend.grpc.service import Service
from ts_frontend.settings import ConfigurationError


class BindFailed(ServingError):
    """The address cannot be listened on: taken, not ours, or not permitted."""


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """What clients may take. None: no limit.

    max_message_bytes: of one request; answers are not limited here.
    max_calls:         at the same time, streams included; more are refused.
    """

    max_message_bytes: int = 6553500
    max_calls: int | None = 10000
    max_connection_age_ms: int | None = None
    max_connection_age_grace_ms: int | None = None


class TlsFiles(NamedTuple):
    """PEM files."""

    certificate: str
    private_key: str


class GrpcServer:
    """`await start()` opens the port, `await stop(grace_s)` closes it.

    host, port:  a port of 0 becomes a free one; `address` then tells which.
    authorize:   asked before each call but those of the health service, whose callers (kubelets,
                 load balancers) have no key, and which tells nothing but "serving".
    """

    def __init__(
        self,
        host: str,
        port: int,
        services: Sequence[Service],
        *,
        authorize: Authorize | None = None,
        limits: GrpcLimits | None = None,
        tls: TlsFiles | None = None,
        is_healthy: Callable[[], bool] = lambda: True,
        on_finished: OnFinished | None = None,
    ) -> None:
        self.host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        self.port = port
        self._services = services
        self._authorize = authorize
        self._limits = limits if limits is not None else GrpcLimits()
        self._tls = tls
        self._is_healthy = is_healthy
        self._on_finished = on_finished
        self._server: grpc.aio.Server | None = None
        self._health: health.HealthServicer | None = None
        self._doorkeeper: Doorkeeper | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        state = "open" if self._server is not None else "closed"
        return f"<GrpcServer {self.address} {state} services={len(self._services)}>"

    async def start(self) -> None:
        """Raises BindFailed, ConfigurationError (TLS files)."""
        credentials = self._credentials()
        names = [service.name for service in self._services]
        self._doorkeeper = Doorkeeper(
            {service.name: service.status_of for service in self._services},
            self._authorize,
            frozenset([health.SERVICE]),
            self._on_finished,
        )
        server = grpc.aio.server(
            interceptors=[self._doorkeeper],
            options=self._options(),
            maximum_concurrent_rpcs=self._limits.max_calls,
        )
        for service in self._services:
            service.add_to(server)
        self._health = health.HealthServicer(names, self._is_healthy)
        # The library's base class is for servers with threads; the methods are what counts.
        health_pb2_grpc.add_HealthServicer_to_server(cast(Any, self._health), server)
        reflection.enable_server_reflection(
            [*names, health.SERVICE, reflection.SERVICE_NAME], server
        )
        try:
            if credentials is None:
                port = server.add_insecure_port(self.address)
            else:
                port = server.add_secure_port(self.address, credentials)
        except RuntimeError as error:
            raise BindFailed(f"The gRPC address {self.address} cannot be listened on.") from error
        if port == 0:
            raise BindFailed(f"The gRPC address {self.address} cannot be listened on.")
        self.port = port
        await server.start()
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """No new calls; those that wait for their client to say something end at once; the others
        have `grace_s` seconds, then they are cancelled.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        if self._health is not None:
            self._health.stop()
        if self._doorkeeper is not None:
            self._doorkeeper.stop()
        await server.stop(grace_s)

    def _options(self) -> list[tuple[str, Any]]:
        limits = self._limits
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Two servers on one port would share its clients instead of one failing to start.
            ("grpc.so_reuseport", 0),
        ]
        if limits.max_connection_age_ms is not None:
            options.append(("grpc.max_connection_age_ms", limits.max_connection_age_ms))
        if limits.max_connection_age_grace_ms is not None:
            options.append(("grpc.max_connection_age_grace_ms", limits.max_connection_age_grace_ms))
        return options

    def _credentials(self) -> grpc.ServerCredentials | None:
        if self._tls is None:
            return None
        certificate, private_key = self._tls
        try:
            # gRPC itself says no more than that the port cannot be opened.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key)
            pair = (Path(private_key).read_bytes(), Path(certificate).read_bytes())
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{certificate} and {private_key}: {error}") from error
        return grpc.ssl_server_credentials([pair])
