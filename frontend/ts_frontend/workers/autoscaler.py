"""`Autoscaler`: the number of workers of one pool follows its load, between its two bounds.

It looks at the pool now and then. More workers are started when requests have waited too long, or
every worker was busy, at several looks in a row; not again before those have loaded the model.
Workers go when fewer would have been enough at every look for a whole idle time. In TorchServe the
difference between the two numbers has no effect.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from ts_frontend.core.clock import monotonic
from ts_frontend.core.model import Autoscaling

if TYPE_CHECKING:
    from ts_frontend.workers.pool import WorkerPool
    from ts_frontend.workers.worker import Worker

logger = logging.getLogger(__name__)

# One look may fall on a moment that means nothing.
LATE_LOOKS = 2
BUSY_LOOKS = 5
# After a worker that could not load the model.
PAUSE_S = 60.0


class PoolLoad(NamedTuple):
    """What is seen at one look.

    busy:     workers that run something.
    has_idle: some worker could take more at once; what waits, waits for its batch to fill.
    waited_s: of the request that has waited longest.
    """

    workers: int
    busy: int
    has_idle: bool
    waited_s: float
    low: int
    high: int


class ScalingRule:
    """Looks in, number of workers out; it remembers what earlier looks saw."""

    def __init__(self, config: Autoscaling) -> None:
        self._config = config
        self._late_looks = 0
        self._busy_looks = 0
        self._peak = 0  # the most that were busy at once, since then:
        self._since_s: float | None = None

    def decide(self, load: PoolLoad, now_s: float) -> int:
        """How many workers there should be.

        now_s: seconds on the monotonic clock.
        """
        if self._since_s is None:
            self._since_s = now_s
        is_short = not load.has_idle
        self._late_looks = self._late_looks + 1 if self._is_late(load) else 0
        self._busy_looks = self._busy_looks + 1 if is_short else 0
        # Where somebody had to wait, one more would have been of use.
        self._peak = max(self._peak, load.busy + (is_short and load.waited_s > 0))
        if self._late_looks >= LATE_LOOKS or self._busy_looks >= BUSY_LOOKS:
            self.forget()
            return min(load.high, load.workers + max(1, load.workers // 2))
        if now_s - self._since_s < self._config.idle_s:
            return load.workers
        needed = max(load.low, 1, self._peak)
        self.forget()
        surplus = load.workers - needed
        return load.workers - (surplus + 1) // 2 if surplus > 0 else load.workers

    def _is_late(self, load: PoolLoad) -> bool:
        return not load.has_idle and load.waited_s > self._config.wait_s

    def forget(self) -> None:
        """What was seen before has been answered, or is of another number of workers."""
        self._late_looks = self._busy_looks = self._peak = 0
        self._since_s = None


class Autoscaler:
    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._rule = ScalingRule(pool.model.config.autoscaling)
        self._starting: list[Worker] = []
        self._not_before_s = 0.0

    @property
    def is_on(self) -> bool:
        """A sequence is bound to its worker, so those pools keep their size."""
        pool = self._pool
        return (
            pool.min_workers < pool.max_workers
            and bool(pool.workers)
            and not pool.model.config.sequence_batching
        )

    def check(self) -> None:
        pool = self._pool
        now_s = monotonic()
        self._settle(now_s)
        if not self.is_on or self._starting or now_s < self._not_before_s:
            self._rule.forget()
            return
        workers = len(pool.workers)
        wanted = self._rule.decide(self._look(now_s), now_s)
        if wanted > workers:
            self._starting = pool.grow(wanted - workers)
            logger.info("%s: %d workers more for the load", pool, len(self._starting))
        elif wanted < workers and (gone := pool.shrink(workers - wanted)):
            logger.info("%s: %d workers were not needed and go", pool, gone)

    def _look(self, now_s: float) -> PoolLoad:
        pool = self._pool
        return PoolLoad(
            workers=len(pool.workers),
            busy=sum(worker.is_busy for worker in pool.workers),
            has_idle=pool.has_idle_worker,
            waited_s=pool.model.queue.waited_s(now_s),
            low=pool.min_workers,
            high=pool.max_workers,
        )

    def _settle(self, now_s: float) -> None:
        """Take those out that could not load the model: nobody needs them to be tried again."""
        loaded = [worker for worker in self._starting if worker.first_load.done()]
        failed = [worker for worker in loaded if worker.first_load.result() is not None]
        self._starting = [worker for worker in self._starting if worker not in loaded]
        failed = [worker for worker in failed if worker in self._pool.workers]
        if failed:
            self._not_before_s = now_s + PAUSE_S
            logger.error(
                "%s: %d workers more could not be started (%s); next attempt in %g s.",
                self._pool,
                len(failed),
                failed[0].last_failure,
                PAUSE_S,
            )
            self._pool.remove(failed)
