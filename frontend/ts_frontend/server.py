"""Builds the server out of its rooms, starts it, and takes it down in order. The only file that
knows all.

Start: logs, metrics, models (archives unpacked, workers starting), listeners, readiness. So ports
       open when every archive is known and before workers have loaded (TorchServe's order; its
       clients poll `/ping`).
Stop: not accepting, finishing what was accepted, workers, metrics, logs.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ts.protocol.tensors import ENVELOPE
from ts.protocol.wakefulness import SPIN_VARIABLE
from ts_frontend import security
from ts_frontend.archive.environments import EnvironmentCache, default_folder
from ts_frontend.archive.fetch import FetchSettings
from ts_frontend.archive.model_store import ModelStore
from ts_frontend.control_plane import ControlPlane, Defaults
from ts_frontend.core.admission import Admission, Load
from ts_frontend.core.deadline import DeadlineHeaders
from ts_frontend.core.errors import ErrorKind, ServerBusy
from ts_frontend.core.fair_order import MAX_WEIGHT, Fairness
from ts_frontend.core.model import Autoscaling, Model, WorkerCare
from ts_frontend.core.registry import ModelRegistry
from ts_frontend.core.sequence_queue import SequenceHeaders
from ts_frontend.data_plane import DataPlane
from ts_frontend.dialects import DIALECTS
from ts_frontend.dialects.base import Dialect, HttpRoutes, Planes
from ts_frontend.dialects.errors import answer_error, bare_refusal, transport_error
from ts_frontend.health import Health
from ts_frontend.http.access_log import AccessLog
from ts_frontend.http.browsers import CorsRouter, guard_from_pages
from ts_frontend.http.listener import HttpLimits, Listener
from ts_frontend.http.router import Route, Router
from ts_frontend.http.tls import TlsFiles, tls_context, tls_files
from ts_frontend.logs import LineBatch, write_access_lines
from ts_frontend.metrics.catalog import CatalogError, MetricCatalog, read_catalog
from ts_frontend.metrics.server_metrics import MetricsMode, ServerMetrics
from ts_frontend.metrics.system import SystemMetrics
from ts_frontend.private_folder import PrivateFolder, remove_abandoned
from ts_frontend.rollout.rollouts import Rollouts
from ts_frontend.settings import ConfigurationError, Settings, format_properties
from ts_frontend.settings.addresses import DEFAULT_PORTS, Address, parse_address
from ts_frontend.settings.amounts import memory_budget_bytes
from ts_frontend.snapshot import (
    InvalidSnapshot,
    ModelSnapshot,
    SnapshotFolder,
    SnapshotWriter,
    parse_models,
)
from ts_frontend.tokens import KeyKind, TokenAuthority
from ts_frontend.workers.connections import load_connection
from ts_frontend.workers.connections.shared_memory import SharedBodies
from ts_frontend.workers.devices import DeviceAllocator
from ts_frontend.workers.environment import (
    HEAP_VARIABLES,
    MAX_SOCKET_PATH_BYTES,
    PortAllocator,
    WorkerLaunch,
    split_launcher_args,
)
from ts_frontend.workers.pool import WorkerPool
from ts_frontend.workers.sequence_pool import SequencePool
from ts_frontend.workers.vigil import Vigil
from ts_frontend.workers.watch import WorkerWatch
from ts_frontend.workers.zygote import Zygote

if TYPE_CHECKING:
    from ts_frontend.grpc.server import GrpcLimits, GrpcServer
    from ts_frontend.grpc.service import Service

logger = logging.getLogger(__name__)

# A private folder's path must leave room for the names of the sockets in it.
MAX_PRIVATE_PATH_BYTES = MAX_SOCKET_PATH_BYTES - len("/.ts.sock.65535")


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
        self._store = self._new_store()
        self.control = ControlPlane(
            self._store,
            self.registry,
            self._new_pool,
            self._defaults(),
            self._meter_model,
            environments=self._new_environments(),
        )
        self._load = Load(settings.max_live_requests, settings.max_live_request_bytes)
        self.data = DataPlane(self.registry, self._admission())
        self.control.on_removed = lambda model: self.metrics.forget_model(*model.id)
        self.rollouts = Rollouts(self.control, self.metrics)
        self.health = Health(
            self.registry,
            self.control.pools,
            self.control.not_loaded,
            is_strict=settings.strict_readiness,
            answer_s=settings.readiness_timeout,
        )
        self.tokens = security.new_tokens(settings)
        self._snapshots = self._new_snapshots()
        self.listeners: list[Listener] = []
        self.grpc_servers: list[GrpcServer] = []
        self._addresses: list[tuple[str, str]] = []
        self._access_log = AccessLog(write_access_lines)
        self._system = self._new_system_metrics()
        self.control.memory_bytes_of = self._system.memory_usage
        self._tasks: list[asyncio.Task[None]] = []
        self._stop_requested = asyncio.Event()
        self._private: PrivateFolder | None = None
        self._launch: WorkerLaunch | None = None
        self._shared_bodies = SharedBodies.create(
            settings.shared_memory_threshold, settings.shared_memory_size
        )
        is_tcp = not settings.use_native_io
        self._ports = PortAllocator(settings.initial_worker_port, is_tcp=is_tcp)
        self._parallel_ports = PortAllocator(settings.initial_distribution_port, is_tcp=is_tcp)
        self._devices = DeviceAllocator(
            settings.number_of_gpu, first=1 if settings.is_torchserve_compatible else 0
        )
        # A worker in a debugger's hands answers no ping, and is not to be replaced.
        self._watch = WorkerWatch(0 if settings.debug else settings.worker_check_interval)
        self._autoscaling = WorkerWatch(
            0 if settings.is_torchserve_compatible else settings.autoscale_interval
        )
        self._vigil = Vigil.of_this_machine(settings.spin_us / 1e6)
        self._connect = load_connection("unix" if settings.use_native_io else "tcp")

    # Life.

    async def start(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Raises BindFailed, ConfigurationError, OSError."""
        settings = self.settings
        for line in settings.report():
            logger.info("%s", line)
        for warning in (*settings.warnings, *security.exposures(settings)):
            logger.warning("%s", warning)
        parents = dict.fromkeys((settings.temp_dir, tempfile.gettempdir()))
        for parent in parents:
            for path in remove_abandoned(parent, os.path.join(settings.temp_dir, "models")):
                logger.warning("Removed %s, left by a server that was killed.", path)
        self._private = PrivateFolder.create(parents, MAX_PRIVATE_PATH_BYTES)
        self._store.work_prefix = self._private.token
        self._launch = self._new_launch(self._private.path)
        if self.tokens is not None:
            self._guard_with(self.tokens)
        self._tasks.append(asyncio.create_task(self.metrics.run(), name="metrics log"))
        await self._load_models(progress)
        planes = self._new_planes()
        dialects = _load_dialects()
        await self._open_listeners(planes, dialects)
        if settings.enable_grpc:
            await self._open_grpc(planes, dialects)
        if not settings.disable_system_metrics:
            self._tasks.append(asyncio.create_task(self._system.run(), name="system metrics"))
        if self._snapshots is not None:
            await self._snapshots.write("startup")
            self.control.on_changed = self._snapshots.note_change

    def _guard_with(self, tokens: TokenAuthority) -> None:
        settings = self.settings
        tokens.write_file()
        if tokens.is_generating:
            logger.info("Token authorization is enabled. The keys are in %s", tokens.path)
        else:
            logger.info("Token authorization is enabled, with the keys that were given.")
        if settings.token_key_file:
            watching = tokens.watch(settings.token_key_check_interval)
            self._tasks.append(asyncio.create_task(watching, name="token keys"))

    async def _load_models(self, progress: Callable[[str], None]) -> None:
        """Raises ConfigurationError for a snapshot that is none."""
        settings = self.settings
        if settings.model_snapshot:
            models = self._snapshot_models(settings.model_snapshot)
            progress(f"restoring {len(models)} models of a snapshot")
            await self.control.restore(models)
        elif settings.load_models:
            progress(f"loading models: {settings.load_models}")
            await self.control.load_all(settings.load_models)

    def _snapshot_models(self, text: str) -> list[ModelSnapshot]:
        settings = self.settings
        where = f"model_snapshot in {settings.origin('model_snapshot')}"
        try:
            models = parse_models(text)
        except InvalidSnapshot as error:
            raise ConfigurationError(f"{error} ({where})") from error
        if settings.is_torchserve_compatible and (missing := self.control.missing(models)):
            raise ConfigurationError(
                f"{', '.join(missing)} not found in the model store ({where}); without "
                "compatibility=torchserve the others would be served."
            )
        return models

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
        await self.rollouts.close()
        await asyncio.gather(
            *(server.stop(grace_s) for server in self.grpc_servers),
            *(listener.stop(grace_s) for listener in self.listeners),
        )
        if self._snapshots is not None and self.control.on_changed == self._snapshots.note_change:
            await self._snapshots.write("shutdown")
        await self.control.close(0 if self.listeners else grace_s)
        if self._launch is not None and self._launch.zygote is not None:
            await self._launch.zygote.aclose()
        if self._shared_bodies is not None:
            self._shared_bodies.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._access_log.flush()
        for log in self._metric_logs:
            log.flush()
        if self._private is not None:
            self._private.remove()
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
            limits=security.archive_limits(settings),
            fetch=FetchSettings(
                allow_private_addresses=settings.fetch_private_addresses,
                max_bytes=settings.max_download_size,
                timeout_s=settings.download_timeout,
                aws=security.aws_credentials(settings.secret_environment),
            ),
            checksums=security.new_checksums(settings),
            is_taken_name_a_conflict=not settings.is_torchserve_compatible,
        )

    def _new_environments(self) -> EnvironmentCache | None:
        settings = self.settings
        if not settings.install_py_dep_per_model:
            return None
        return EnvironmentCache(
            settings.environment_cache or default_folder(os.environ),
            settings.python,
            os.path.join(self.home, "ts", "utils", "setup_model_venv.py"),
            environment=settings.worker_environment,
            pip_options=settings.pip_options,
            timeout_s=settings.dependency_timeout,
        )

    def _new_snapshots(self) -> SnapshotWriter | None:
        settings = self.settings
        if settings.no_config_snapshots:
            return None
        folder = SnapshotFolder(
            os.path.join(settings.log_location, "config"),
            format_properties,
            keep=settings.max_config_snapshots,
        )
        properties = {
            **settings.to_properties(),
            "version": self.version,
            **({"tsConfigFile": settings.config_file} if settings.config_file else {}),
        }
        return SnapshotWriter(folder, lambda: (properties, self.control.snapshot()))

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
            service_envelope=settings.service_envelope
            or (ENVELOPE if settings.ts_open_inference_protocol else ""),
            gpu_count=settings.number_of_gpu,
            unregister_timeout_s=settings.unregister_model_timeout,
            scale_down_grace_s=settings.shutdown_timeout,
            models=settings.models,
            fairness=_fairness(settings),
            is_torchserve_compatible=settings.is_torchserve_compatible,
            sequence_headers=_sequence_headers(settings),
            autoscaling=Autoscaling(settings.autoscale_wait / 1000, settings.autoscale_idle),
            is_lazy=settings.lazy_loading,
            idle_unload_s=settings.model_idle_timeout,
            memory_budget_bytes=memory_budget_bytes(settings.model_memory_budget),
            max_workers=1 if settings.debug else None,
            care=WorkerCare(
                is_idempotent=not settings.is_torchserve_compatible,
                death_retries=settings.worker_death_retries,
                is_isolating=settings.isolate_batch_failures,
                ping_timeout_s=settings.worker_ping_timeout,
                cancel_grace_s=settings.cancel_grace,
                max_requests=settings.max_worker_requests,
                max_age_s=settings.max_worker_age,
                max_memory_bytes=settings.max_worker_memory << 20,
            ),
        )

    @property
    def _overload_kind(self) -> ErrorKind:
        is_throttling = self.settings.overload_status == "429"
        return ErrorKind.THROTTLED if is_throttling else ErrorKind.OVERLOADED

    def _admission(self) -> Admission:
        return Admission(
            DeadlineHeaders(self.settings.deadline_headers),
            self._overload_kind,
            self._load if self._load.is_limited else None,
        )

    def _new_launch(self, socket_dir: str) -> WorkerLaunch:
        settings = self.settings
        launcher = split_launcher_args(settings.cpu_launcher_args or "")
        variables = {
            "TS_DECODE_INPUT_REQUEST": _flag(settings.decode_input_request),
            "TS_IPEX_ENABLE": _flag(settings.ipex_enable),
            "TS_IPEX_GPU_ENABLE": _flag(settings.ipex_gpu_enable),
            SPIN_VARIABLE: str(settings.spin_us),
        }
        inherited = settings.worker_environment
        # An operator's own choice goes first.
        variables |= {
            name: value for name, value in HEAP_VARIABLES.items() if name not in inherited
        }
        environment = {**inherited, **variables}
        return WorkerLaunch(
            home=self.home,
            python=settings.python,
            environment=inherited,
            socket_dir=socket_dir,
            metrics_config=self._metrics_config,
            log_location=settings.log_location,
            connection="unix" if settings.use_native_io else "tcp",
            max_field_bytes=settings.max_response_size,
            limit_max_image_pixels=settings.limit_max_image_pixels,
            shared_bodies=self._shared_bodies,
            cpu_launcher_args=launcher if settings.cpu_launcher_enable else None,
            variables=variables,
            zygote=Zygote.create(settings.python, self.home, environment, settings.worker_preload),
            worker_start=settings.worker_start,
            is_by_hand=settings.debug,
        )

    def _new_pool(self, model: Model) -> WorkerPool:
        if self._launch is None:
            raise RuntimeError("a model before the server was started")
        kind = SequencePool if model.config.sequence_batching else WorkerPool
        return kind(
            model,
            self._launch,
            self._connect,
            self._ports,
            self._parallel_ports,
            self._devices,
            self.metrics,
            watch=self._watch,
            autoscaling=self._autoscaling,
            vigil=self._vigil,
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
        self.metrics.set_load(
            len(asyncio.all_tasks()), sum(len(listener.connections) for listener in self.listeners)
        )
        for model, pool in self.control.pools.items():
            name, version = model.id
            self.metrics.set_queue_depth(name, version, len(model.queue))
            states: dict[str, int] = {}
            for worker in pool.workers:
                states[worker.state.value] = states.get(worker.state.value, 0) + 1
            busy = sum(worker.is_busy for worker in pool.workers)
            self.metrics.set_workers(name, version, states, busy)

    # Listeners.

    async def _open_listeners(self, planes: Planes, dialects: Sequence[Dialect]) -> None:
        settings = self.settings
        inference = _address(settings, "inference_address")
        management = _address(settings, "management_address")
        # The routes of all dialects, first come first served, guarded by their keys.
        routes = HttpRoutes()
        for dialect in dialects:
            routes = routes + dialect.http_routes(planes)
        if self.tokens is None:
            guarded = guard_from_pages(
                routes.management,
                settings.cors_allowed_origin,
                is_loopback_only=management.is_local,
            )
            routes = HttpRoutes(routes.inference, guarded, routes.metrics)
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
            metrics = _address(settings, "metrics_address")
            doors.append(("Metrics", metrics, routes.metrics))
        for name, address, its_routes in doors:
            listener = self._new_listener(address, its_routes)
            if self._load.is_limited:
                listener.refuse_body = self._refuse_body
            await listener.start()
            self.listeners.append(listener)
            self._addresses.append((name, str(listener.address)))
            logger.info("%s API on %s", name, listener.address)

    def _refuse_body(self, body_bytes: int) -> bytes | None:
        try:
            self._load.check(body_bytes)
        except ServerBusy as error:
            error.kind = self._overload_kind
            return bare_refusal(error)
        return None

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
        from ts_frontend.grpc.server import GrpcServer
        from ts_frontend.grpc.server import TlsFiles as GrpcTlsFiles

        tokens = self.tokens
        tls = GrpcTlsFiles(*self._tls) if self.settings.enable_grpc_ssl else None
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
        self._access_log.note(remote, "gRPC", method.encode(), "2.0", status, seconds)

    def _new_planes(self) -> Planes:
        settings = self.settings
        return Planes(
            data=self.data,
            control=self.control,
            rollouts=self.rollouts,
            health=self.health,
            tokens=self.tokens,
            render_metrics=self._render_metrics,
            version=self.version,
            has_local_times=settings.is_torchserve_compatible,
            has_torchserve_grpc_errors=settings.is_torchserve_compatible,
            has_grpc_metadata=not settings.is_torchserve_compatible,
            is_model_api_enabled=settings.enable_model_api,
            is_open_inference_enabled=settings.ts_open_inference_protocol,
            max_multipart_parts=settings.max_multipart_parts,
            max_body_bytes=settings.max_request_size,
            min_compressed_bytes=settings.min_compressed_response_size,
            sequence_headers=_sequence_headers(settings),
        )

    def _render_metrics(self, names: Sequence[str]) -> bytes:
        settings = self.settings
        if settings.is_torchserve_compatible and settings.metrics_mode == "log":
            return b""
        return self.metrics.render(names).encode()

    def _new_listener(self, address: Address, routes: Sequence[Route]) -> Listener:
        settings = self.settings
        router = CorsRouter if settings.cors_allowed_origin else Router
        return Listener(
            address,
            router(routes, answer_error),
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
            too_large="" if settings.is_torchserve_compatible else self._too_large(),
            bodies=self._shared_bodies,
            access_log=self._access_log,
            on_response=self.metrics.on_response,
            headers=self._cors(),
            ssl=tls_context(self._tls) if address.scheme == "https" else None,
            socket_mode=int(settings.unix_socket_mode, 8),
        )

    def _too_large(self) -> str:
        limit = self.settings.max_request_size
        return f"The request's body is larger than {limit} bytes (max_request_size)."

    @functools.cached_property
    def _tls(self) -> TlsFiles:
        """Raises ConfigurationError where there is no usable key and certificate."""
        if self._private is None:
            raise RuntimeError("a listener before the server was started")
        return tls_files(self.settings, self._private.path)

    def _cors(self) -> list[tuple[bytes, bytes]]:
        settings = self.settings
        texts = {
            b"access-control-allow-origin": settings.cors_allowed_origin,
            b"access-control-allow-methods": settings.cors_allowed_methods,
            b"access-control-allow-headers": settings.cors_allowed_headers,
        }
        return [(name, text.encode()) for name, text in texts.items() if text]


def _address(settings: Settings, key: str) -> Address:
    return parse_address(getattr(settings, key), *DEFAULT_PORTS[key])


def _load_dialects() -> list[Dialect]:
    dialects = []
    for import_string in DIALECTS.values():
        module, _, name = import_string.partition(":")
        dialects.append(getattr(importlib.import_module(module), name)())
    return dialects


def _fairness(settings: Settings) -> Fairness | None:
    """Raises ConfigurationError."""
    if not settings.priority_header and not settings.fairness_header:
        return None
    return Fairness(
        (settings.priority_header or "").lower().encode(),
        _weights("priority_weights", settings.priority_weights),
        (settings.fairness_header or "").lower().encode(),
        _weights("fairness_weights", settings.fairness_weights),
    )


def _sequence_headers(settings: Settings) -> SequenceHeaders:
    return SequenceHeaders(
        settings.ts_header_key_sequence_id.encode(),
        settings.ts_header_key_sequence_start.encode(),
        settings.ts_header_key_sequence_end.encode(),
    )


def _weights(key: str, texts: Sequence[str]) -> dict[bytes, int]:
    weights = {}
    for text in texts:
        name, _, number = text.strip().rpartition("=")
        if not name or not number.isdecimal() or not 1 <= int(number) <= MAX_WEIGHT:
            raise ConfigurationError(
                f"{key}: {text!r} should be name=weight, a whole number from 1 to {MAX_WEIGHT}"
            )
        weights[name.strip().encode()] = int(number)
    return weights


def _flag(value: bool) -> str:
    return "true" if value else "false"
