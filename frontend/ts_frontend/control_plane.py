"""The control plane: what operators may ask. Joins the archives, the registry and the worker pools.

Everything that changes one model name happens under that name's lock, so that a register, a scale
and an unregister that come together run one after the other. Reading needs no lock.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ts_frontend.archive.environments import EnvironmentCache
from ts_frontend.archive.model_archive import ModelArchive
from ts_frontend.archive.model_config import ModelFileConfig
from ts_frontend.archive.model_store import ModelStore, default_name
from ts_frontend.archive.self_test import read_self_test
from ts_frontend.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    InvalidModel,
    ModelConflict,
    ModelVersionNotFound,
    NotEnoughDevices,
    SelfTestFailed,
    ServingError,
    WorkerStartFailed,
)
from ts_frontend.core.fair_order import Fairness
from ts_frontend.core.model import (
    Autoscaling,
    Batching,
    Containment,
    Model,
    ModelConfig,
    ModelId,
    ModelStatus,
    ParallelType,
    TorchrunConfig,
    WorkerCare,
)
from ts_frontend.core.registry import ModelRegistry
from ts_frontend.core.sequence_queue import SequenceHeaders
from ts_frontend.core.worker_state import WorkerState
from ts_frontend.residency import Residency, ResidencyReport
from ts_frontend.snapshot import ModelSnapshot
from ts_frontend.workers.failure import WorkerFailure
from ts_frontend.workers.pool import PoolFactory, WorkerPool
from ts_frontend.workers.worker import Worker

logger = logging.getLogger(__name__)

RUNTIMES = ("python", "python3")
# Of what a worker printed before its end, in its description; the log has more.
SHOWN_LINES = 10
MAX_LINE_CHARS = 300
CRASH = "Fatal Python error:"  # as Python's faulthandler begins


@dataclass(frozen=True, slots=True)
class Defaults:
    """The server's answers to what neither a request, an archive nor the `models` property says."""

    workers: int = 0
    startup_workers: int = 1
    response_timeout_s: float = 120
    startup_timeout_s: float = 120
    job_queue_size: int = 100
    service_handler: str = ""
    service_envelope: str = ""
    gpu_count: int = 0
    unregister_timeout_s: float = 120
    scale_down_grace_s: float = 30
    models: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
    fairness: Fairness | None = None
    sequence_headers: SequenceHeaders = SequenceHeaders()  # noqa: RUF009 - frozen
    is_torchserve_compatible: bool = False  # docs/compatibility.md
    care: WorkerCare = field(default_factory=WorkerCare)
    autoscaling: Autoscaling = field(default_factory=Autoscaling)
    is_lazy: bool = False
    idle_unload_s: float = 0
    memory_budget_bytes: int = 0  # 0: no limit
    max_workers: int | None = None  # of each model, whatever is asked; None: no limit


@dataclass(frozen=True, slots=True)
class Registration:
    """What a client asks when it registers; None: not said."""

    url: str
    model_name: str | None = None
    handler: str | None = None
    runtime: str | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    response_timeout_s: float | None = None
    startup_timeout_s: float | None = None
    initial_workers: int | None = None
    is_synchronous: bool = True
    s3_sse_kms: bool = False


@dataclass(frozen=True, slots=True)
class Scaled:
    """How a register or scale went. `is_complete`: every wanted worker has loaded the model.

    is_lazy: none has been started; the first request does that.
    """

    model: Model
    workers: int
    is_synchronous: bool
    is_complete: bool
    is_lazy: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    models: Sequence[Model]
    next_token: str | None


@dataclass(frozen=True, slots=True)
class FailureReport:
    """Why a worker's last process ended.

    cause: one of few words. is_lasting: the same archive would fail the same way again.
    last_lines: the end of what the process printed.
    """

    cause: str
    reason: str
    exit_code: int | None
    signal: int | None
    exception: str
    is_lasting: bool
    last_lines: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker as an operator sees it.

    started_at: seconds since the epoch. pid: -1 while no process runs.
    """

    id: int
    started_at: float
    is_ready: bool
    state: str
    pid: int
    memory_bytes: int
    gpu: int | None
    gpu_usage: str
    restarts: int
    failure: FailureReport | None


@dataclass(frozen=True, slots=True)
class ModelReport:
    model: Model
    min_workers: int
    max_workers: int
    workers: Sequence[WorkerReport]
    unhealthy_reason: str = ""
    residency: ResidencyReport | None = None


class ControlPlane:
    def __init__(
        self,
        store: ModelStore,
        registry: ModelRegistry,
        new_pool: PoolFactory,
        defaults: Defaults,
        on_registered: Callable[[Model], None] = lambda model: None,
        environments: EnvironmentCache | None = None,
    ) -> None:
        """environments: installs the packages that archives ask for; None: they are not."""
        self.registry = registry
        self.pools: dict[Model, WorkerPool] = {}
        self.residency = Residency(self.pools, defaults.memory_budget_bytes)
        self.not_loaded: dict[str, str] = {}  # location -> why, of `load_models` and the snapshot
        self._store = store
        self._new_pool = new_pool
        self._defaults = defaults
        self._environments = environments
        self._archives: dict[Model, ModelArchive] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._watchers: set[asyncio.Task[None]] = set()
        self._removals: set[asyncio.Task[None]] = set()
        self._on_registered = on_registered
        self.on_changed: Callable[[], None] = lambda: None
        self.on_unregister: Callable[[Model], None] = lambda model: None  # before it happens
        self.on_default_set: Callable[[Model], None] = lambda model: None
        self.on_removed: Callable[[Model], None] = lambda model: None  # when nothing is left of it
        self._unrestored: dict[ModelId, ModelSnapshot] = {}
        self.memory_bytes_of: Callable[[int], int] = lambda pid: 0  # a worker's resident bytes

    # Register.

    async def register(self, wanted: Registration) -> Scaled:
        """Open the archive, add the version, start its workers.

        Raises InvalidArgument, ModelNotFound, InvalidModel, ArchiveDownloadFailed,
        ArchiveStorageFailed, ModelConflict, WorkerStartFailed. After an error nothing is left: no
        archive, folder or worker. The one exception is TorchServe's: a model whose worker itself
        refused to load it stays registered, without workers, so that its description can be read
        and another scale can try again.
        """
        if wanted.runtime is not None and wanted.runtime not in (*RUNTIMES, "LSP"):
            raise InvalidArgument(f"Invalid RuntimeType value: {wanted.runtime}")
        model = await self._add(wanted, at_startup=False)
        initial = (
            self._defaults.workers if wanted.initial_workers is None else wanted.initial_workers
        )
        low, high = self._worker_range(model, initial, initial)
        if low <= 0 and not model.config.is_lazy:
            self.on_changed()
            return Scaled(model, 0, True, True)
        try:
            scaled = await self._begin(model, low, high, wanted.is_synchronous)
        except WorkerStartFailed as error:
            pool = self.pools.get(model)
            if error.was_refused and pool is not None:
                pool.min_workers = pool.max_workers = 0
            else:
                await self._take_back(model)
            if isinstance(error, SelfTestFailed):
                raise
            raise self._told(error, error.message) from error
        finally:
            self.on_changed()
        return scaled

    async def _take_back(self, model: Model) -> None:
        async with self._locks[model.id.name]:
            # Else somebody has unregistered it meanwhile.
            if model.status is ModelStatus.REGISTERED:
                self.on_unregister(model)
                await self._remove(model, grace_s=0)

    async def load(self, location: str, name: str | None) -> None:
        """Register a model of `load_models` and start its workers, without waiting for them."""
        wanted = Registration(url=location, model_name=name, is_synchronous=False)
        model = await self._add(wanted, at_startup=True)
        workers = self._defaults.startup_workers
        low, high = self._worker_range(model, workers, workers, use_models_property=True)
        if low > 0:
            await self._begin(model, low, high, is_synchronous=False)

    async def load_all(self, load_models: str) -> list[str]:
        """Load what the `load_models` setting names; returns the locations that could not be
        loaded.
        """
        failed = []
        for name, location in models_to_load(load_models, self._store):
            try:
                await self.load(location, name)
            except ServingError as error:
                # One bad archive does not keep the others from being served.
                logger.error("Failed to load model: %s: %s", location, error.message)
                failed.append(location)
                self.not_loaded[location] = error.message
        return failed

    # Snapshots.

    def snapshot(self) -> list[ModelSnapshot]:
        """What `restore` needs to bring the models back.

        A version that could not be restored stays in: its archive may be there again next time.
        """
        taken = []
        for model in self.registry:
            pool = self.pools.get(model)
            if pool is None or model.status is not ModelStatus.REGISTERED:
                continue
            if model.is_on_trial:
                continue  # a server that ends in the middle of a rollout has rolled it back
            config = model.config
            taken.append(
                ModelSnapshot(
                    model.id.name,
                    model.id.version,
                    model.archive_name,
                    is_default=self.registry.is_default(model),
                    min_workers=pool.min_workers,
                    max_workers=pool.max_workers,
                    batch_size=config.batch_size,
                    max_batch_delay_ms=config.max_batch_delay_ms,
                    response_timeout_s=int(config.response_timeout_s),
                    startup_timeout_s=int(config.startup_timeout_s),
                    runtime=model.runtime,
                    parallel_level=config.parallel_level,
                )
            )
        known = {(model.name, model.version) for model in taken}
        return taken + [model for id, model in self._unrestored.items() if id not in known]

    def _forget_unrestored(self, name: str, version: str | None) -> bool:
        """Who unregisters what a snapshot named and is not here gets a 404, and what he wanted."""
        unwanted = [
            id
            for id in self._unrestored
            if id.name == name and (version is None or id.version == version)
        ]
        for id in unwanted:
            del self._unrestored[id]
        return bool(unwanted)

    def missing(self, models: Sequence[ModelSnapshot]) -> list[str]:
        """The archives of a snapshot that are not in the model store."""
        return [model.archive_name for model in models if not self._store.has(model.archive_name)]

    async def restore(self, models: Sequence[ModelSnapshot]) -> list[str]:
        """Register and scale what a snapshot holds, without waiting for the workers; returns the
        archives that could not be restored. The others are served.
        """
        failed = []
        defaults = []
        for stored in models:
            wanted = Registration(
                stored.archive_name, model_name=stored.name, runtime=stored.runtime
            )
            try:
                model = await self._add(wanted, at_startup=False, stored=stored)
                if stored.is_default:
                    defaults.append(model.id)
                if stored.min_workers > 0:
                    await self._begin(model, stored.min_workers, stored.max_workers, False)
            except ServingError as error:
                logger.error(
                    "Model %s version %s of the snapshot could not be restored from %s: %s",
                    stored.name,
                    stored.version,
                    stored.archive_name,
                    error.message,
                )
                failed.append(stored.archive_name)
                self._unrestored[ModelId(stored.name, stored.version)] = stored
        for name, version in defaults:
            self.registry.set_default(name, version)
        return failed

    # Rollouts.

    async def add_on_trial(self, wanted: Registration) -> Model:
        """Register a version without workers, for a rollout. Raises as `register`."""
        model = await self._add(wanted, at_startup=False)
        model.is_on_trial = True
        return model

    async def load_on_trial(self, model: Model, low: int, high: int) -> None:
        """Have at least `low` workers of `model` loaded; the archive's own numbers go before.

        Raises InvalidArgument, WorkerStartFailed, SelfTestFailed.
        """
        low, high = self._worker_range(model, low, high)
        pool = self.pools[model]
        await self._scale(model, max(low, pool.min_workers), max(high, pool.max_workers), True)

    async def _add(
        self, wanted: Registration, *, at_startup: bool, stored: ModelSnapshot | None = None
    ) -> Model:
        archive = await self._store.open(wanted.url, s3_sse_kms=wanted.s3_sse_kms)
        try:
            model = self._new_model(wanted, archive, at_startup, stored)
            await self._install_packages(model, archive)
            if archive.config is not None and archive.config.warm_up is not None:
                model.self_test = await asyncio.to_thread(
                    read_self_test, archive.path, archive.config.warm_up
                )
            async with self._locks[model.id.name]:
                self.registry.add(model)
        except BaseException:
            await self._store.release(archive)
            raise
        self._archives[model] = archive
        self.pools[model] = pool = self._new_pool(model)
        model.workers = pool
        self._on_registered(model)
        for warning in _not_available(model.config, archive.config, self._defaults.gpu_count):
            logger.warning("Model %s: %s", model.id, warning)
        logger.info(
            "Model %s version %s registered from %s", model.id.name, model.id.version, model.url
        )
        return model

    async def _install_packages(self, model: Model, archive: ModelArchive) -> None:
        """Raises ModelSetupFailed."""
        requirements = archive.manifest.requirements_file
        if self._environments is None or not requirements:
            return
        # Another runtime's interpreter is not ours to choose.
        has_venv = model.config.use_venv and model.runtime == "python"
        environment = await self._environments.prepare(
            archive.path, requirements, has_venv=has_venv
        )
        model.python, model.packages = environment.python, environment.packages

    def _new_model(
        self,
        wanted: Registration,
        archive: ModelArchive,
        at_startup: bool,
        stored: ModelSnapshot | None = None,
    ) -> Model:
        manifest = archive.manifest
        name = wanted.model_name or manifest.model_name
        if not name and at_startup:
            name = default_name(wanted.url)
        if not name:
            raise InvalidModel("Model name is not defined.")
        version = manifest.model_version or "1.0"
        model_id = ModelId(name, version)
        if any(model.id == model_id for model in self.registry):
            raise ModelConflict.of(name, version)
        stated = (self._defaults.models or {}).get(name, {}).get(version, {})
        runtime = str(stated.get("runtimeType") or wanted.runtime or manifest.runtime or "python")
        if runtime not in RUNTIMES:
            raise InvalidArgument(
                f"Invalid RuntimeType value: {runtime}"
                + ("; the C++ runtime is not available here." if runtime == "LSP" else "")
            )
        if not at_startup and stored is None:
            _own_range(archive.config)
        # A model without any handler is registered all the same: its workers say what is missing.
        handler = wanted.handler or manifest.handler or self._defaults.service_handler
        config = self._model_config(wanted, archive.config, stated)
        return Model(
            model_id,
            config if stored is None else _with_stored(config, stored),
            path=archive.path,
            handler=handler,
            url=wanted.url,
            archive_name=archive.file_name,
            runtime=runtime,
            envelope=self._defaults.service_envelope,
            is_loaded_at_startup=at_startup,
        )

    def _model_config(
        self, wanted: Registration, file: ModelFileConfig | None, stated: Mapping[str, Any]
    ) -> ModelConfig:
        """One configuration out of the request, the archive's file, the `models` property and the
        defaults.

        The order differs by value and is TorchServe's as observed (contract, config section 5).
        """
        defaults = self._defaults
        batch_size = _first_positive(
            wanted.batch_size, file and file.batch_size, stated.get("batchSize"), default=1
        )
        delay_ms = (
            wanted.max_batch_delay_ms
            if wanted.max_batch_delay_ms is not None
            else _first_positive(
                file and file.max_batch_delay_ms, stated.get("maxBatchDelay"), default=100
            )
        )
        if file is not None:
            # A model-config file always decides the timeouts, 120 s where it does not name them.
            response_s: float = file.response_timeout_s or 120
            startup_s: float = file.startup_timeout_s or 120
        else:
            response_s = _first_positive(
                stated.get("responseTimeout"),
                wanted.response_timeout_s,
                default=defaults.response_timeout_s,
            )
            startup_s = _first_positive(
                stated.get("startupTimeout"),
                wanted.startup_timeout_s,
                default=defaults.startup_timeout_s,
            )
        config = ModelConfig(
            batch_size=int(batch_size),
            max_batch_delay_ms=max(0, int(delay_ms)),
            response_timeout_s=response_s,
            startup_timeout_s=startup_s,
            job_queue_size=defaults.job_queue_size,
            fairness=defaults.fairness,
            sequence_headers=defaults.sequence_headers,
            care=defaults.care,
            autoscaling=defaults.autoscaling,
            is_lazy=defaults.is_lazy,
            idle_unload_s=defaults.idle_unload_s,
            device_type="gpu" if defaults.gpu_count else "cpu",
        )
        return config if file is None else _with_file(config, file, defaults)

    def _worker_range(
        self, model: Model, low: int, high: int, *, use_models_property: bool = False
    ) -> tuple[int, int]:
        """How many workers a new model starts with; a valid pair in its own file decides."""
        try:
            if (own := _own_range(self._archives[model].config)) is not None:
                return own
        except InvalidArgument:
            # Who registers has been told; a start goes on with what the others say (TorchServe).
            logger.warning(
                "Model %s: its minWorkers is above its maxWorkers; neither is used.", model.id
            )
        if use_models_property:
            stated = (self._defaults.models or {}).get(model.id.name, {}).get(model.id.version, {})
            if stated.get("minWorkers"):
                return int(stated["minWorkers"]), int(
                    stated.get("maxWorkers") or stated["minWorkers"]
                )
        return low, high

    # Scale.

    async def scale(
        self,
        name: str,
        version: str | None,
        min_workers: int,
        max_workers: int,
        is_synchronous: bool,
    ) -> Scaled:
        """Raises ModelNotFound, ModelVersionNotFound, InvalidArgument, WorkerStartFailed."""
        model = self.registry.resolve(name, version)
        if min_workers < 0:
            raise InvalidArgument("min_worker cannot be negative.")
        if max_workers < min_workers:
            raise InvalidArgument("max_worker cannot be less than min_worker.")
        try:
            return await self._scale(model, min_workers, max_workers, is_synchronous)
        except SelfTestFailed:
            raise
        except WorkerStartFailed as error:
            # The client's own words for the version come back, "null" where it named none
            # (TorchServe).
            text = f"Failed to start workers for model {name} version: {version or 'null'}"
            raise self._told(error, text) from error
        finally:
            self.on_changed()

    def _told(self, error: WorkerStartFailed, text: str) -> WorkerStartFailed:
        """The failure as its client hears it: with the cause, which TorchServe has in its log."""
        if error.cause and not self._defaults.is_torchserve_compatible:
            text = f"{text}: {error.cause}"
        told = WorkerStartFailed(
            text,
            cause=error.cause,
            out_of_memory=error.kind is not WorkerStartFailed.kind,
            was_refused=error.was_refused,
        )
        told.reason = error.reason
        return told

    async def _begin(self, model: Model, low: int, high: int, is_synchronous: bool) -> Scaled:
        """Give a model that was just added its first workers, now or with its first request.

        One for which there is no port or too few GPUs is taken out again.
        """
        try:
            if not model.config.is_lazy:
                return await self._scale(model, low, high, is_synchronous)
            low, high = self._limited(model, max(1, low), max(low, high))
        except WorkerStartFailed:
            raise
        except ServingError:
            await self._take_back(model)
            raise
        self.residency.add(model, self.pools[model], low, max(low, high))
        return Scaled(model, low, True, True, is_lazy=True)

    async def _scale(self, model: Model, low: int, high: int, is_synchronous: bool) -> Scaled:
        pool = self.pools[model]
        low, high = self._limited(model, low, high)
        async with self._locks[model.id.name]:
            if self.pools.get(model) is not pool:  # it was unregistered while this waited
                raise ModelVersionNotFound.of(*model.id)
            started = pool.scale(low, high, self._defaults.scale_down_grace_s)
        if not is_synchronous:
            self._watch(model, pool, started)
            return Scaled(model, low, False, False)
        error = await self._wait_loaded(model, pool, started)
        if error is not None:
            cause = error.cause if isinstance(error, WorkerStartFailed) else error.message
            pool.remove(started, cause)
            raise error
        is_complete = pool.healthy_count >= low
        return Scaled(model, low, True, is_complete)

    async def _wait_loaded(
        self, model: Model, pool: WorkerPool, started: Sequence[Worker]
    ) -> ServingError | None:
        """None when those of `started` that are still wanted have loaded.

        Whom a later scale has stopped was not at fault, and the model is not to go for it.
        """
        while True:
            error = await pool.wait_loaded(started)
            if not isinstance(error, WorkerStartFailed) or not error.was_stopped:
                return error
            wanted = [worker for worker in started if worker in pool.workers]
            if model.status is ModelStatus.UNREGISTERING or len(wanted) == len(started):
                return error
            started = wanted

    def _limited(self, model: Model, low: int, high: int) -> tuple[int, int]:
        """No more workers than there may be, or GPUs for. Raises NotEnoughDevices."""
        limit = self._defaults.max_workers
        config = model.config
        if config.parallel_level and config.device_type == "gpu":
            gpus = len(config.device_ids or range(self._defaults.gpu_count))
            places = gpus // config.parallel_level
            if high > 0 and not places:
                raise NotEnoughDevices.of(model.id.name, config.parallel_level)
            limit = places if limit is None else min(limit, places)
        return (low, high) if limit is None else (min(low, limit), min(high, limit))

    def _watch(self, model: Model, pool: WorkerPool, started: Sequence[Worker]) -> None:
        async def report() -> None:
            error = await pool.wait_loaded(started)
            if error is not None:
                cause = error.cause if isinstance(error, WorkerStartFailed) else ""
                logger.error(
                    "A worker of model %s could not be started: %s",
                    model.id,
                    cause or error.message,
                )

        task = asyncio.create_task(report(), name=f"loading {model.id}")
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    # The rest.

    async def unregister(
        self, name: str, version: str | None = None, *, grace_s: float | None = None
    ) -> Model:
        """Take the version out; what runs is finished first, what waits is answered.

        grace_s: how long what runs may take, if not as long as at a scale-down.
        Raises ModelNotFound, ModelVersionNotFound, InvalidModelVersion, DeadlineExceeded.
        """
        if self._forget_unrestored(name, version):
            self.on_changed()
        async with self._locks[name]:
            model = self.registry.check_removable(name, version)
            self.on_unregister(model)
            try:
                async with asyncio.timeout(self._defaults.unregister_timeout_s):
                    if grace_s is None:
                        grace_s = self._defaults.scale_down_grace_s
                    await self._remove(model, grace_s)
            except TimeoutError:
                raise DeadlineExceeded(f"Timed out while cleaning resources: {name}") from None
        self.on_changed()
        return model

    async def _remove(self, model: Model, grace_s: float) -> None:
        """What was begun is finished, also when the caller is cancelled or has run out of time."""
        model.status = ModelStatus.UNREGISTERING
        # A default goes before its siblings when its first workers could not be started.
        heir = self.registry.remove(model)
        if heir is not None:
            self.on_default_set(heir)
        self.residency.forget(model)
        removal = asyncio.create_task(self._clear(model, grace_s), name=f"remove {model.id}")
        self._removals.add(removal)
        removal.add_done_callback(self._removal_ended)
        await asyncio.shield(removal)

    def _removal_ended(self, removal: asyncio.Task[None]) -> None:
        self._removals.discard(removal)
        if not removal.cancelled() and (error := removal.exception()) is not None:
            logger.error("%s failed.", removal.get_name(), exc_info=error)

    async def _clear(self, model: Model, grace_s: float) -> None:
        await self.pools[model].close(grace_s)
        del self.pools[model]
        await self._store.release(self._archives.pop(model))
        self.on_removed(model)
        logger.info("Model %s version %s unregistered", model.id.name, model.id.version)

    def set_default(self, name: str, version: str) -> None:
        """Raises ModelNotFound, ModelVersionNotFound."""
        self.registry.set_default(name, version)
        self.on_default_set(self.registry.resolve(name))
        self.on_changed()

    def list_models(self, limit: int, offset: int) -> Page:
        """The default versions, `limit` of them from `offset` on, sorted by name."""
        models = self.registry.defaults()
        # TorchServe names a next page also when this one ends at the last model; clients page by
        # it.
        has_next = offset + limit <= len(models)
        return Page(models[offset : offset + limit], str(offset + limit) if has_next else None)

    def describe(self, name: str, version: str | None = None) -> ModelReport:
        """Raises ModelNotFound, ModelVersionNotFound."""
        return self._report(self.registry.resolve(name, version))

    def describe_all(self, name: str) -> list[ModelReport]:
        """Every version in the order of registration. Raises ModelNotFound."""
        return [self._report(model) for model in self.registry.versions(name)]

    def _report(self, model: Model) -> ModelReport:
        pool = self.pools[model]
        return ModelReport(
            model,
            pool.min_workers,
            pool.max_workers,
            [self._worker_report(worker) for worker in pool.workers],
            pool.unhealthy_reason,
            self.residency.report(model),
        )

    def _worker_report(self, worker: Worker) -> WorkerReport:
        pid = worker.pid
        return WorkerReport(
            id=worker.place.port,
            started_at=worker.started_at,
            is_ready=worker.state is WorkerState.READY,
            state=worker.state.value,
            pid=pid,
            memory_bytes=self.memory_bytes_of(pid) if pid > 0 else 0,
            gpu=worker.place.gpu,
            gpu_usage=worker.gpu_usage,
            restarts=worker.restarts,
            failure=None if worker.failure is None else _failure_report(worker.failure),
        )

    async def close(self, grace_s: float) -> None:
        """Stop every worker, delete every unpacked archive; downloaded files stay."""
        await self.residency.close()
        await asyncio.gather(*(pool.close(grace_s) for pool in list(self.pools.values())))
        if self._removals:
            await asyncio.wait(self._removals)
        for model in list(self.pools):
            self._archives.pop(model).discard()
            del self.pools[model]
        for watcher in self._watchers:
            watcher.cancel()


def _failure_report(failure: WorkerFailure) -> FailureReport:
    return FailureReport(
        failure.cause_word,
        str(failure),
        failure.exit_code,
        failure.signal,
        failure.exception,
        failure.is_lasting,
        [line[:MAX_LINE_CHARS] for line in _telling_lines(failure.last_lines)],
    )


def _telling_lines(lines: Sequence[str]) -> Sequence[str]:
    """The end of what was said; of a crash in native code its beginning, where it happened."""
    for number, line in enumerate(lines):
        if line.startswith(CRASH):
            return lines[number : number + SHOWN_LINES]
    return lines[-SHOWN_LINES:]


def parse_metadata(body: bytes) -> dict[str, Any]:
    """A handler's description of itself; {} if it is no JSON object."""
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def models_to_load(load_models: str, store: ModelStore) -> list[tuple[str | None, str]]:
    """The name, if it gives one, and the location of each model of the `load_models` setting."""
    if load_models.lower() == "all":
        return [(None, location) for location in store.list_all()]
    return [name_and_location(part) for part in load_models.split(",") if part.strip()]


def name_and_location(entry: str) -> tuple[str | None, str]:
    """`name=location` or a location. A URL may contain `=`, so the name must look like a name."""
    name, equals, location = entry.strip().partition("=")
    if equals and "/" not in name and ":" not in name:
        return name.strip(), location.strip()
    return None, entry.strip()


def _not_available(config: ModelConfig, file: ModelFileConfig | None, gpu_count: int) -> list[str]:
    """What the configuration asks for and does not get: said once, not silently left out."""
    warnings = []
    if file is not None and file.device_type == "gpu" and config.device_type != "gpu":
        warnings.append("deviceType gpu, and no GPU for this server: its workers run on the CPU.")
    if file is not None and file.device_ids and config.device_ids is None:
        warnings.append(
            f"deviceIds {list(file.device_ids)} is not used: there are {gpu_count} GPUs, "
            "numbered from 0 (number_of_gpu)."
        )
    if config.batching is Batching.ADAPTIVE and config.batch_size == 1:
        warnings.append("batching: adaptive has no effect with a batchSize of 1, its upper bound.")
    if config.sequence_batching and not config.sequence_max_idle_ms:
        warnings.append(
            "sequenceBatching needs a sequenceMaxIdleMSec above 0; all requests are refused."
        )
    if config.continuous_batching and config.async_communication:
        warnings.append("asyncCommunication gives way to continuousBatching.")
    return warnings


def _own_range(file: ModelFileConfig | None) -> tuple[int, int] | None:
    """The numbers of workers that a model's own file asks for; None if it has no such pair.

    Raises InvalidArgument.
    """
    if file is None or not file.min_workers or not file.max_workers:
        return None
    if file.max_workers < file.min_workers:
        raise InvalidArgument("max_worker cannot be less than min_worker.")
    return file.min_workers, file.max_workers


def _with_stored(config: ModelConfig, stored: ModelSnapshot) -> ModelConfig:
    """What a snapshot says goes before the archive's own file (contract, config section 9)."""
    return replace(
        config,
        batch_size=stored.batch_size,
        max_batch_delay_ms=stored.max_batch_delay_ms,
        response_timeout_s=stored.response_timeout_s,
        startup_timeout_s=stored.startup_timeout_s,
        # With torchrun it is the number of processes that the archive asks for.
        parallel_level=config.parallel_level or stored.parallel_level,
    )


def _first_positive(*values: Any, default: float) -> float:
    return next((value for value in values if value is not None and value > 0), default)


def _care(care: WorkerCare, file: ModelFileConfig) -> WorkerCare:
    memory_mb = file.max_worker_memory_mb
    stated = {
        "is_idempotent": file.idempotent,
        "death_retries": file.worker_death_retries,
        "is_isolating": file.isolate_batch_failures,
        "ping_timeout_s": file.ping_timeout_s,
        "cancel_grace_s": file.cancel_grace_s,
        "max_requests": file.max_worker_requests,
        "max_age_s": file.max_worker_age_s,
        "max_memory_bytes": None if memory_mb is None else memory_mb << 20,
    }
    said: dict[str, Any] = {name: value for name, value in stated.items() if value is not None}
    return replace(care, **said)


def _autoscaling(scaling: Autoscaling, file: ModelFileConfig) -> Autoscaling:
    wait_ms, idle_s = file.autoscale_wait_ms, file.autoscale_idle_s
    return Autoscaling(
        scaling.wait_s if wait_ms is None else wait_ms / 1000,
        scaling.idle_s if idle_s is None else idle_s,
    )


def _containment(file: ModelFileConfig) -> Containment:
    return Containment(
        address_space_bytes=(file.max_address_space_mb or 0) << 20,
        cpu_s=file.max_cpu_time_s or 0,
        open_files=file.max_open_files or 0,
        file_bytes=(file.max_file_size_mb or 0) << 20,
        has_own_temp_dir=bool(file.own_temp_folder),
        is_offline=file.network == "none",
        is_unprivileged=bool(file.no_new_privileges),
    )


def _sequences(config: ModelConfig, file: ModelFileConfig, defaults: Defaults) -> int:
    """As many as fill a batch of every worker; TorchServe serves one at a time."""
    if defaults.is_torchserve_compatible:
        return 1
    return config.batch_size * max(1, file.min_workers or 1)


def _with_file(config: ModelConfig, file: ModelFileConfig, defaults: Defaults) -> ModelConfig:
    device_type = file.device_type or config.device_type
    if device_type == "gpu" and not defaults.gpu_count:
        device_type = "cpu"
    device_ids = tuple(file.device_ids) if file.device_ids is not None else None
    if device_ids is not None and any(not 0 <= gpu < defaults.gpu_count for gpu in device_ids):
        device_ids = None
    parallel_type = ParallelType((file.parallel_type or "").lower())
    torchrun = None
    if file.torchrun is not None and parallel_type is not ParallelType.NONE:
        torchrun = TorchrunConfig(
            nnodes=file.torchrun.nnodes,
            nproc_per_node=file.torchrun.nproc_per_node,
            rdzv_backend=file.torchrun.rdzv_backend,
            rdzv_endpoint=file.torchrun.rdzv_endpoint or "",
            rdzv_conf=file.torchrun.rdzv_conf or "",
            monitor_interval_s=file.torchrun.monitor_interval_s,
            node_rank=file.torchrun.node_rank,
            omp_threads=file.torchrun.omp_number_threads,
        )
    level = file.parallel_level or (torchrun.nproc_per_node if torchrun else 0)
    if torchrun is None and level and parallel_type is not ParallelType.CUSTOM:
        torchrun = TorchrunConfig(nproc_per_node=level)
    return replace(
        config,
        max_retry_timeout_s=300 if file.max_retry_timeout_s is None else file.max_retry_timeout_s,
        client_timeout_ms=file.client_timeout_ms or 0,
        job_queue_size=file.job_queue_size or config.job_queue_size,
        device_type=device_type,
        device_ids=device_ids,
        parallel_type=parallel_type,
        parallel_level=level if parallel_type is not ParallelType.NONE else 0,
        torchrun=torchrun,
        use_job_ticket=bool(file.use_job_ticket),
        use_venv=bool(file.use_venv),
        async_communication=bool(file.async_communication),
        continuous_batching=bool(file.continuous_batching),
        sequence_batching=bool(file.sequence_batching),
        sequence_max_idle_ms=file.sequence_max_idle_ms or 0,
        sequence_timeout_ms=file.sequence_timeout_ms or 0,
        max_num_sequence=file.max_num_sequence or _sequences(config, file, defaults),
        max_sequence_job_queue_size=file.max_sequence_job_queue_size or 1,
        batching=Batching(file.batching or "dynamic"),
        target_latency_ms=file.target_latency_ms or config.target_latency_ms,
        care=_care(config.care, file),
        autoscaling=_autoscaling(config.autoscaling, file),
        containment=_containment(file),
        worker_start=file.worker_start or "",
        is_lazy=config.is_lazy if file.load is None else file.load == "lazy",
        idle_unload_s=(config.idle_unload_s if file.idle_unload_s is None else file.idle_unload_s),
        inputs=file.inputs or (),
        outputs=file.outputs or (),
    )
