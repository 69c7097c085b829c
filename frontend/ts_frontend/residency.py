"""`Residency`: which of the models that are loaded on demand are loaded now.

Such a model (`load: lazy`) has no workers until a request comes. The request waits in the model's
queue while one load, for all who wait, starts the workers. A model goes again when nobody has asked
for it for its idle time, or when another needs the memory: the one that was asked for least
recently, and never one with work. Models that are loaded eagerly count with what they occupy, and
stay.

A request to a model that is loaded costs nothing here: its pool notes when it last had work.
Entry points: `add`, `forget`, `report`, `check`.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import NoWorker, ServingError, WorkerStartFailed
from ts_frontend.core.model import Model
from ts_frontend.workers.pool import WorkerPool
from ts_frontend.workers.process import resident_bytes
from ts_frontend.workers.watch import WorkerWatch
from ts_frontend.workers.worker import Worker

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
# From a load that failed to the next that a request may cause; doubled each time.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class ResidencyState(enum.Enum):
    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ResidencyReport:
    """loads: how often it was loaded. idle_s: since when nobody has asked for it."""

    state: ResidencyState
    memory_bytes: int
    loads: int
    idle_s: float


class _Resident:
    """What is remembered of one model.

    size_bytes:   what its workers occupied when that was last seen, 0 if never.
    is_reserved:  it is about to occupy that much.
    """

    def __init__(self, model: Model, pool: WorkerPool) -> None:
        self.model = model
        self.pool = pool
        self.loads = 0
        self.size_bytes = 0
        self.is_reserved = False
        self.used_at_s = monotonic()
        self.load: asyncio.Task[None] | None = None
        self.failures = 0  # in a row
        self.retry: asyncio.TimerHandle | None = None

    @property
    def is_evictable(self) -> bool:
        pool = self.pool
        if self.model.config.sequence_batching:
            return False  # what its sequences have told it would be gone
        return self.load is None and pool.ready_count > 0 and not pool.is_busy

    @property
    def state(self) -> ResidencyState:
        if self.load is not None:
            return ResidencyState.LOADING
        if self.pool.is_dormant:
            return ResidencyState.UNLOADED
        if self.pool.unhealthy_reason:
            return ResidencyState.FAILED
        return ResidencyState.LOADED if self.pool.workers else ResidencyState.UNLOADED


class Residency:
    """pools: of all models, also those that it does not load.

    budget_bytes: what the workers of all models together may occupy; 0: no limit.
    """

    def __init__(
        self,
        pools: Mapping[Model, WorkerPool],
        budget_bytes: int = 0,
        *,
        look_interval_s: float = LOOK_INTERVAL_S,
        memory_bytes_of: Callable[[int], int] = resident_bytes,
    ) -> None:
        self._pools = pools
        self._budget_bytes = budget_bytes
        self._memory_bytes_of = memory_bytes_of
        self._watch = WorkerWatch(look_interval_s)
        self._residents: dict[Model, _Resident] = {}
        self._room = asyncio.Lock()  # one makes room at a time, lest two send the same away
        self._changed = asyncio.Event()

    def add(self, model: Model, pool: WorkerPool, low: int, high: int) -> None:
        """Have the first request for `model` start `low` workers."""
        pool.min_workers, pool.max_workers = low, high
        resident = self._residents[model] = _Resident(model, pool)
        self._rest(resident)
        self._watch.add(self)

    def forget(self, model: Model) -> None:
        """It is unregistered; its pool is the caller's to close."""
        resident = self._residents.pop(model, None)
        if resident is None:
            return
        if resident.load is not None:
            resident.load.cancel()
        if resident.retry is not None:
            resident.retry.cancel()
        if not self._residents:
            self._watch.discard(self)

    async def close(self) -> None:
        loads = [resident.load for resident in self._residents.values() if resident.load]
        for model in list(self._residents):
            self.forget(model)
        if loads:
            await asyncio.wait(loads)

    def report(self, model: Model) -> ResidencyReport | None:
        """None for a model that is always loaded."""
        resident = self._residents.get(model)
        if resident is None:
            return None
        self._note_use(resident)
        return ResidencyReport(
            resident.state,
            self._occupied_bytes(resident.pool),
            resident.loads,
            0.0 if resident.pool.is_busy else monotonic() - resident.used_at_s,
        )

    # Load.

    def _rest(self, resident: _Resident) -> None:
        """Without workers, until a request comes."""
        resident.retry = None
        resident.pool.sleep(lambda: self._requested(resident))

    def _requested(self, resident: _Resident) -> None:
        if resident.load is None:
            name = f"load {resident.model.id}"
            resident.load = asyncio.create_task(self._load(resident), name=name)
            resident.load.add_done_callback(lambda task: self._load_ended(resident, task))

    def _load_ended(self, resident: _Resident, task: asyncio.Task[None]) -> None:
        resident.load = None
        resident.is_reserved = False
        self._changed.set()
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            logger.error("The load of %s failed.", resident.model.id, exc_info=error)
        elif resident.pool.is_dormant and len(resident.model.queue):
            self._requested(resident)  # it came in the moment in which nobody seemed to wait

    async def _load(self, resident: _Resident) -> None:
        pool, model = resident.pool, resident.model
        if self._budget_bytes:
            try:
                async with asyncio.timeout(model.config.startup_timeout_s):
                    await self._make_room(resident)
            except TimeoutError:
                model.queue.fail_all(_no_room(model))
                return
        if not pool.is_dormant or not len(model.queue):
            return  # somebody has scaled it, or nobody waits any more
        logger.info("Model %s is loaded for a request.", model.id)
        try:
            started = pool.scale(pool.min_workers, pool.max_workers, 0)
            error = await pool.wait_loaded(started)
        except ServingError as no_port:
            started, error = [], no_port
        if error is None:
            resident.failures = 0
            resident.loads += 1
            resident.used_at_s = monotonic()
            resident.size_bytes = self._occupied_bytes(pool)
        elif not started or set(started) & set(pool.workers):  # else somebody has taken them out
            self._give_up(resident, started, error)

    def _give_up(self, resident: _Resident, started: list[Worker], error: ServingError) -> None:
        cause = error.cause if isinstance(error, WorkerStartFailed) else error.message
        is_lasting = any(worker.failure and worker.failure.is_lasting for worker in started)
        resident.failures += 1
        refusal = NoWorker(f"Model {resident.model.id.name} could not be loaded: {cause}")
        refusal.reason = "load_failed"
        resident.model.queue.fail_all(refusal)
        resident.pool.remove(started, cause)
        if is_lasting:
            logger.error(
                "Model %s is not tried again until it is scaled: %s", resident.model.id, cause
            )
            return
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (resident.failures - 1))
        logger.error("Model %s could not be loaded: %s", resident.model.id, cause)
        loop = asyncio.get_running_loop()
        resident.retry = loop.call_later(pause_s, self._retry, resident)

    def _retry(self, resident: _Resident) -> None:
        pool = resident.pool
        if pool.min_workers and not pool.workers:  # else somebody has scaled it
            self._rest(resident)

    # Room.

    async def _make_room(self, resident: _Resident) -> None:
        """Return when it may occupy what it will need, which is then reserved."""
        async with self._room:
            while len(resident.model.queue) and resident.pool.is_dormant:
                self._changed.clear()
                needed = self._needed_bytes(resident)
                if self._fits(resident, needed):
                    resident.size_bytes = needed
                    resident.is_reserved = True
                    return
                victim = self._least_recent()
                if victim is not None:
                    self._unload(victim, "its memory is needed")
                    await victim.pool.wait_gone()
                    continue
                if not self._has_company(resident):
                    logger.warning(
                        "Model %s needs more than model_memory_budget leaves it; it is loaded all "
                        "the same, since no other model could go.",
                        resident.model.id,
                    )
                    resident.is_reserved = True
                    return
                await self._changed.wait()

    def _needed_bytes(self, resident: _Resident) -> int:
        """As much as it had last time; of an unknown model, as much as the largest known."""
        return resident.size_bytes or max(other.size_bytes for other in self._residents.values())

    def _fits(self, resident: _Resident, needed: int) -> bool:
        if not needed and any(other.is_reserved for other in self._residents.values()):
            return False  # one after the other, until it is known what they need
        return self.used_bytes() + needed <= self._budget_bytes

    def _has_company(self, resident: _Resident) -> bool:
        return any(
            other is not resident and (other.is_reserved or other.pool.pids)
            for other in self._residents.values()
        )

    def used_bytes(self) -> int:
        """What the workers of all models occupy, or are about to."""
        used = sum(self._occupied_bytes(pool) for pool in self._pools.values())
        for resident in self._residents.values():
            if resident.is_reserved:
                used += max(0, resident.size_bytes - self._occupied_bytes(resident.pool))
        return used

    def _occupied_bytes(self, pool: WorkerPool) -> int:
        return sum(self._memory_bytes_of(pid) for pid in pool.pids)

    def _least_recent(self) -> _Resident | None:
        candidates = [resident for resident in self._residents.values() if resident.is_evictable]
        for resident in candidates:
            self._note_use(resident)
        return min(candidates, key=lambda resident: resident.used_at_s, default=None)

    def _unload(self, resident: _Resident, reason: str) -> None:
        logger.info("Model %s is unloaded: %s.", resident.model.id, reason)
        self._rest(resident)

    # Looks.

    def check(self) -> None:
        now_s = monotonic()
        for resident in self._residents.values():
            self._note_use(resident)
            if resident.load is None and resident.pool.ready_count:
                resident.size_bytes = self._occupied_bytes(resident.pool)
            limit_s = resident.model.config.idle_unload_s
            if limit_s and resident.is_evictable and now_s - resident.used_at_s >= limit_s:
                self._unload(resident, f"nobody asked for it for {limit_s:g} s")
        if self._budget_bytes:
            self._keep_budget()
        self._changed.set()

    def _keep_budget(self) -> None:
        if any(pool.is_letting_go for pool in self._pools.values()):
            return  # what they occupy is about to be free
        surplus = self.used_bytes() - self._budget_bytes
        resident = [other for other in self._residents.values() if other.pool.workers]
        while surplus > 0 and len(resident) > 1:  # the next request would only bring back the last
            victim = self._least_recent()
            if victim is None:
                return
            resident.remove(victim)
            surplus -= self._occupied_bytes(victim.pool)
            self._unload(victim, "the models occupy more than model_memory_budget")

    def _note_use(self, resident: _Resident) -> None:
        pool = resident.pool
        used_at_s = monotonic() if pool.is_busy else pool.worked_at_s
        resident.used_at_s = max(resident.used_at_s, used_at_s)


def _no_room(model: Model) -> NoWorker:
    refusal = NoWorker(
        f"Model {model.id.name} could not be loaded: the models in memory are all at work, and "
        "model_memory_budget leaves no room for another."
    )
    refusal.reason = "no_memory"
    return refusal
