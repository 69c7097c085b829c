"""Builds the server out of its rooms, starts it, and takes it down in order. The only file that
knows all.

Start: logs, metrics, models (archives unpacked, workers starting), listeners, readiness. So ports
       open when every archive is known and before workers have loaded (TorchServe's order; its
       clients poll `/ping`).
Stop: not accepting, finishing what was accepted, workers, metrics, logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ts_frontend.archive.fetch import FetchSettings
from ts_frontend.archive.model_store import ModelStore
from ts_frontend.archive.unpack import ArchiveLimits
from ts_frontend.control_plane import ControlPlane, Defaults
from ts_frontend.core.model import Model
from ts_frontend.core.registry import ModelRegistry
from ts_frontend.data_plane import DataPlane
from ts_frontend.dialects import DIALECTS
from ts_frontend.dialects.base import Dialect, HttpRoutes, Planes, SequenceHeaders
from ts_frontend.dialects.errors import answer_error, transport_error
from ts_frontend.health import Health
from ts_frontend.http.access_log import AccessEntry, AccessLog
from ts_frontend.http.listener import Address, HttpLimits, Listener, parse_address
from ts_frontend.http.router import Route, Router
from ts_frontend.logs import LineBatch, write_access_lines
from ts_frontend.metrics.catalog import CatalogError, MetricCatalog, read_catalog
from ts_frontend.metrics.server_metrics import MetricsMode, ServerMetrics
from ts_frontend.metrics.system import SystemMetrics
from ts_frontend.settings import ConfigurationError, Settings
from ts_frontend.tokens import KeyKind, TokenAuthority
from ts_frontend.workers.connections import load_connection
from ts_frontend.workers.devices import DeviceAllocator
from ts_frontend.workers.environment import PortAllocator, WorkerLaunch, split_launcher_args
from ts_frontend.workers.pool import WorkerPool

if TYPE_CHECKING:
    from ts_frontend.grpc.server import GrpcLimits, GrpcServer
    from ts_frontend.grpc.service import Service

logger = logging.getLogger(__name__)

# Of an address without a port, for http and https (contract, HTTP section 1).
DEFAULT_PORTS = {"inference": (80, 443), "management": (8081, 8444), "metrics": (8082, 8445)}


def find_home() -> str:
    """The folder that contains the package `ts`, found without importing it."""
    spec = importlib.util.find_spec("ts")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("The package `ts` is not installed; set model_server_home.")
    return os.path.dirname(os.path.abspath(spec.submodule_search_locations[0]))


class Server:
    """One running server. `start`, then `wait`, then `stop`."""

    def __init__(self, settings: Settings, version: str) -> None:
        self.settings = settings
        self.version = version
        self.home = settings.model_server_home or find_home()
        self._metric_logs = (LineBatch("TS_METRICS"), LineBatch("MODEL_METRICS"))
        self.metrics = self._new_metrics()
        self.registry = ModelRegistry()
        self.control = ControlPlane(
            self._new_store(), self.registry, self._new_pool, self._defaults(), self._meter_model
        )
        self.data = DataPlane(self.registry)
        self.health = Health(self.registry, self.control.pools)
        self.tokens = (
            None
            if settings.disable_token_authorization
            else TokenAuthority(settings.working_dir, settings.token_expiration_min * 60)
        )
        self.listeners: list[Listener] = []
        self.grpc_servers: list[GrpcServer] = []
        self._addresses: list[tuple[str, str]] = []
        self._access_log = AccessLog(write_access_lines)
        self._system = self._new_system_metrics()
        self.control.memory_bytes_of = self._system.memory_usage
        self._tasks: list[asyncio.Task[None]] = []
        self._stop_requested = asyncio.Event()
        self._socket_dir = ""
        self._launch: WorkerLaunch | None = None
        is_tcp = not settings.use_native_io
        self._ports = PortAllocator(settings.initial_worker_port, is_tcp=is_tcp)
        self._parallel_ports = PortAllocator(settings.initial_distribution_port, is_tcp=is_tcp)
        self._devices = DeviceAllocator(settings.number_of_gpu)
        self._connect = load_connection("unix" if settings.use_native_io else "tcp")

    # Life.

    async def start(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Raises BindFailed, ConfigurationError, OSError."""
        settings = self.settings
        for line in settings.report():
            logger.info("%s", line)
        for warning in settings.warnings:
            logger.warning("%s", warning)
        self._socket_dir = _private_folder(settings.temp_dir)
        self._launch = self._new_launch()
        if self.tokens is not None:
            self.tokens.write_file()
            logger.info("Token authorization is enabled. The keys are in %s", self.tokens.path)
        self._tasks.append(asyncio.create_task(self.metrics.run(), name="metrics log"))
        if settings.load_models:
            progress(f"loading models: {settings.load_models}")
            await self.control.load_all(settings.load_models)
        planes = self._new_planes()
        dialects = _load_dialects()
        await self._open_listeners(planes, dialects)
        if settings.enable_grpc:
            await self._open_grpc(planes, dialects)
        if not settings.disable_system_metrics:
            self._tasks.append(asyncio.create_task(self._system.run(), name="system metrics"))

    def request_stop(self) -> None:
        """Called by a signal: first in order, the second time at once."""
        if self._stop_requested.is_set():
            logger.warning("Stopping at once.")
            os._exit(1)
        self._stop_requested.set()

    async def wait(self) -> None:
        await self._stop_requested.wait()

    async def stop(self) -> None:
        """Finish what was accepted within `shutdown_timeout`, end the workers, leave nothing
        behind.
        """
        grace_s = self.settings.shutdown_timeout
        logger.info("Stopping: no new requests; running ones have %g s.", grace_s)
        await asyncio.gather(
            *(server.stop(grace_s) for server in self.grpc_servers),
            *(listener.stop(grace_s) for listener in self.listeners),
        )
        await self.control.close(0 if self.listeners else grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._access_log.flush()
        for log in self._metric_logs:
            log.flush()
        shutil.rmtree(self._socket_dir, ignore_errors=True)
        logger.info("TorchServe has stopped.")

    # Building.

    def _new_metrics(self) -> ServerMetrics:
        settings = self.settings
        path = settings.metrics_config or os.path.join(self.home, "ts", "configs", "metrics.yaml")
        self._metrics_config = path
        try:
            catalog = read_catalog(path)
        except CatalogError as error:
            logger.error("Metrics are off: %s", error)
            catalog = MetricCatalog()
        metrics = ServerMetrics(
            catalog,
            socket.gethostname(),
            MetricsMode(settings.metrics_mode),
            is_auto_detecting=settings.model_metrics_auto_detect,
            write_server_line=self._metric_logs[0].append,
            write_model_line=self._metric_logs[1].append,
        )
        metrics.on_scrape.append(self._set_model_gauges)
        return metrics

    def _new_store(self) -> ModelStore:
        settings = self.settings
        return ModelStore(
            settings.model_store,
            settings.temp_dir,
            settings.allowed_urls,
            limits=ArchiveLimits(
                max_entries=settings.max_archive_entries,
                max_bytes=settings.max_archive_size,
                max_ratio=settings.max_archive_ratio,
            ),
            fetch=FetchSettings(
                allow_private_addresses=settings.fetch_private_addresses,
                max_bytes=settings.max_download_size,
                timeout_s=settings.download_timeout,
            ),
        )

    def _defaults(self) -> Defaults:
        settings = self.settings
        workers = settings.default_workers_per_model
        return Defaults(
            workers=workers,
            startup_workers=workers or settings.number_of_gpu or os.cpu_count() or 1,
            response_timeout_s=settings.default_response_timeout,
            startup_timeout_s=settings.default_startup_timeout,
            job_queue_size=settings.job_queue_size,
            service_handler=settings.default_service_handler or "",
            service_envelope=settings.service_envelope or "",
            gpu_count=settings.number_of_gpu,
            unregister_timeout_s=settings.unregister_model_timeout,
            scale_down_grace_s=settings.shutdown_timeout,
            models=settings.models,
        )

    def _new_launch(self) -> WorkerLaunch:
        settings = self.settings
        launcher = split_launcher_args(settings.cpu_launcher_args or "")
        return WorkerLaunch(
            home=self.home,
            python=settings.python,
            environment=settings.worker_environment,
            socket_dir=self._socket_dir,
            metrics_config=self._metrics_config,
            log_location=settings.log_location,
            connection="unix" if settings.use_native_io else "tcp",
            max_field_bytes=settings.max_response_size,
            limit_max_image_pixels=settings.limit_max_image_pixels,
            cpu_launcher_args=launcher if settings.cpu_launcher_enable else None,
            variables={
                "TS_DECODE_INPUT_REQUEST": _flag(settings.decode_input_request),
                "TS_IPEX_ENABLE": _flag(settings.ipex_enable),
                "TS_IPEX_GPU_ENABLE": _flag(settings.ipex_gpu_enable),
            },
        )

    def _new_pool(self, model: Model) -> WorkerPool:
        if self._launch is None:
            raise RuntimeError("a model before the server was started")
        return WorkerPool(
            model,
            self._launch,
            self._connect,
            self._ports,
            self._parallel_ports,
            self._devices,
            self.metrics,
        )

    def _meter_model(self, model: Model) -> None:
        name, version = model.id
        model.meters = self.metrics.model_meters(name, version)
        model.default_meters = self.metrics.model_meters(name, "default")

    def _new_system_metrics(self) -> SystemMetrics:
        settings = self.settings
        return SystemMetrics(
            self._record_system,
            gpu_count=settings.number_of_gpu,
            interval_s=settings.metric_time_interval,
            worker_pids=self._worker_pids,
            command=settings.system_metrics_cmd,
            python=settings.python,
            home=self.home,
            environment=settings.worker_environment,
        )

    def _record_system(self, name: str, labels: Sequence[str], value: float) -> None:
        self.metrics.record_system(name, labels, value)

    def _worker_pids(self) -> list[int]:
        return [
            worker.pid
            for pool in self.control.pools.values()
            for worker in pool.workers
            if worker.pid > 0
        ]

    def _set_model_gauges(self) -> None:
        for model, pool in self.control.pools.items():
            name, version = model.id
            self.metrics.set_queue_depth(name, version, len(model.queue))
            states: dict[str, int] = {}
            for worker in pool.workers:
                states[worker.state.value] = states.get(worker.state.value, 0) + 1
            self.metrics.set_workers(name, version, states)

    # Listeners.

    async def _open_listeners(self, planes: Planes, dialects: Sequence[Dialect]) -> None:
        settings = self.settings
        inference = parse_address(settings.inference_address, *DEFAULT_PORTS["inference"])
        management = parse_address(settings.management_address, *DEFAULT_PORTS["management"])
        # The routes of all dialects, first come first served, guarded by their keys.
        routes = HttpRoutes()
        for dialect in dialects:
            routes = routes + dialect.http_routes(planes)
        doors: list[tuple[str, Address, Sequence[Route]]] = []
        if inference == management:
            # One listener for both; TorchServe's SageMaker and KServe images run this way.
            both = [*routes.inference, *routes.management]
            if settings.enable_metrics_api:
                both += routes.metrics
            doors.append(("Inference and management", inference, both))
        else:
            doors.append(("Inference", inference, routes.inference))
            doors.append(("Management", management, routes.management))
        if settings.enable_metrics_api:
            metrics = parse_address(settings.metrics_address, *DEFAULT_PORTS["metrics"])
            doors.append(("Metrics", metrics, routes.metrics))
        for name, address, its_routes in doors:
            listener = self._new_listener(address, its_routes)
            await listener.start()
            self.listeners.append(listener)
            self._addresses.append((name, str(listener.address)))
            logger.info("%s API on %s", name, listener.address)

    def addresses(self) -> list[tuple[str, str]]:
        """Name and address of each open listener, with the port that a 0 became."""
        return list(self._addresses)

    async def _open_grpc(self, planes: Planes, dialects: Sequence[Dialect]) -> None:
        """Raises BindFailed, ConfigurationError."""
        try:
            # Imported here for its cost, which a server without gRPC need not bear.
            from ts_frontend.grpc.server import GrpcLimits
        except ImportError as error:
            raise ConfigurationError(
                f"gRPC cannot be served ({error}); install grpcio, or set enable_grpc=false"
            ) from error
        settings = self.settings
        services = [dialect.grpc_services(planes) for dialect in dialects]
        inference = self._new_grpc_server(
            settings.grpc_inference_address,
            settings.grpc_inference_port,
            [service for its_services in services for service in its_services.inference],
            KeyKind.INFERENCE,
            GrpcLimits(
                settings.max_request_size,
                settings.max_connections,
                settings.grpc_inference_max_connection_age_ms,
                settings.grpc_inference_max_connection_age_grace_ms,
            ),
        )
        management = self._new_grpc_server(
            settings.grpc_management_address,
            settings.grpc_management_port,
            [service for its_services in services for service in its_services.management],
            KeyKind.MANAGEMENT,
            GrpcLimits(
                settings.max_request_size,
                settings.max_connections,
                settings.grpc_management_max_connection_age_ms,
                settings.grpc_management_max_connection_age_grace_ms,
            ),
        )
        for name, server in (("gRPC inference", inference), ("gRPC management", management)):
            await server.start()
            self.grpc_servers.append(server)
            self._addresses.append((name, server.address))
            logger.info("%s API on %s", name, server.address)

    def _new_grpc_server(
        self, host: str, port: int, services: Sequence[Service], key: KeyKind, limits: GrpcLimits
    ) -> GrpcServer:
        from ts_frontend.grpc.server import GrpcServer, TlsFiles

        settings, tokens, tls = self.settings, self.tokens, None
        if settings.enable_grpc_ssl:
            if not settings.certificate_file or not settings.private_key_file:
                raise ConfigurationError(
                    "enable_grpc_ssl needs private_key_file and certificate_file (PEM)"
                )
            tls = TlsFiles(settings.certificate_file, settings.private_key_file)
        return GrpcServer(
            host,
            port,
            services,
            authorize=None if tokens is None else functools.partial(tokens.check, key),
            limits=limits,
            tls=tls,
            is_healthy=lambda: self.health.is_healthy,
            on_finished=self._log_grpc_call,
        )

    def _log_grpc_call(self, remote: str, method: str, status: int, seconds: float) -> None:
        self._access_log.append(
            AccessEntry(remote, "gRPC", method.encode(), "2.0", status, seconds)
        )

    def _new_planes(self) -> Planes:
        settings = self.settings
        return Planes(
            data=self.data,
            control=self.control,
            health=self.health,
            tokens=self.tokens,
            render_metrics=lambda names: self.metrics.render(names).encode(),
            version=self.version,
            is_model_api_enabled=settings.enable_model_api,
            is_open_inference_enabled=settings.ts_open_inference_protocol,
            max_multipart_parts=settings.max_multipart_parts,
            sequence_headers=SequenceHeaders(
                settings.ts_header_key_sequence_id.encode(),
                settings.ts_header_key_sequence_start.encode(),
                settings.ts_header_key_sequence_end.encode(),
            ),
        )

    def _new_listener(self, address: Address, routes: Sequence[Route]) -> Listener:
        settings = self.settings
        return Listener(
            address,
            Router(routes, answer_error),
            HttpLimits(
                max_body_bytes=settings.max_request_size,
                max_request_line_bytes=settings.max_request_line_size,
                max_header_bytes=settings.max_request_header_size,
                max_body_chunks=settings.max_body_chunks,
                header_timeout_s=settings.http_header_timeout,
                body_timeout_s=settings.http_body_timeout,
                keep_alive_timeout_s=settings.http_keep_alive_timeout,
                max_response_buffer_bytes=settings.max_response_buffer,
                max_connections=settings.max_connections,
            ),
            transport_error=transport_error,
            access_log=self._access_log,
            on_response=self.metrics.on_response,
            headers=self._cors(),
            ssl=self._tls_context() if address.scheme == "https" else None,
        )

    def _tls_context(self) -> ssl.SSLContext:
        """Raises ConfigurationError where there is no usable key and certificate."""
        key, certificate = self.settings.private_key_file, self.settings.certificate_file
        if not key or not certificate:
            raise ConfigurationError(
                "an https address needs private_key_file and certificate_file (PEM)"
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{certificate} and {key}: {error}") from error
        return context

    def _cors(self) -> list[tuple[bytes, bytes]]:
        settings = self.settings
        texts = {
            b"access-control-allow-origin": settings.cors_allowed_origin,
            b"access-control-allow-methods": settings.cors_allowed_methods,
            b"access-control-allow-headers": settings.cors_allowed_headers,
        }
        return [(name, text.encode()) for name, text in texts.items() if text]


def _load_dialects() -> list[Dialect]:
    dialects = []
    for import_string in DIALECTS.values():
        module, _, name = import_string.partition(":")
        dialects.append(getattr(importlib.import_module(module), name)())
    return dialects


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _private_folder(temp_dir: str) -> str:
    """Where worker sockets live: ours alone, and short enough for a socket's name (107 bytes)."""
    for parent in (temp_dir, tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="ts-", dir=parent)
            if len(os.path.join(folder, ".ts.sock.65535").encode()) <= 107:
                return folder
            os.rmdir(folder)
    raise OSError(
        f"No folder for worker sockets in {temp_dir}: its path is too long or not writable."
    )
