"""`Recycler`: replaces workers that have served enough, before they do harm (leaks, fragments).

The replacement is started first and the old worker goes when that has loaded the model, after it
has finished what it runs: no request is lost and none waits for a load. For that long there is one
worker more, with its memory. One worker of a pool is replaced at a time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import ServingError
from ts_frontend.core.worker_state import WorkerState
from ts_frontend.workers.process import resident_bytes
from ts_frontend.workers.worker import Worker

if TYPE_CHECKING:
    from ts_frontend.workers.pool import WorkerPool

logger = logging.getLogger(__name__)

# After a replacement that could not load the model.
PAUSE_S = 60.0


class Recycler:
    def __init__(self, pool: WorkerPool) -> None:
        self.task: asyncio.Task[None] | None = None
        self._pool = pool
        self._not_before_s = 0.0

    def check(self) -> None:
        """Begin to replace the first worker that has reached a limit of its model's settings."""
        care = self._pool.model.config.care
        if not (care.max_requests or care.max_age_s or care.max_memory_bytes):
            return
        if self.task is not None or monotonic() < self._not_before_s:
            return
        for worker in self._pool.workers:
            if worker.state is WorkerState.READY and (reason := self._reason(worker)):
                logger.info("%s is replaced: %s", worker.name, reason)
                self.task = asyncio.create_task(
                    self._replace(worker), name=f"recycle {worker.name}"
                )
                self.task.add_done_callback(self._ended)
                return

    def _reason(self, worker: Worker) -> str:
        care = self._pool.model.config.care
        if not worker.requests:
            return ""  # what a fresh one is, another fresh one will be
        if 0 < care.max_requests <= worker.requests:
            return f"it took {worker.requests} requests (maxWorkerRequests)"
        if 0 < care.max_age_s <= worker.age_s:
            return f"it has served for {worker.age_s:.0f} s (maxWorkerAgeInSec)"
        if care.max_memory_bytes:
            used_bytes = resident_bytes(worker.pid)
            if used_bytes >= care.max_memory_bytes:
                return f"it uses {used_bytes >> 20} MiB of memory (maxWorkerMemoryInMB)"
        return ""

    async def _replace(self, worker: Worker) -> None:
        pool = self._pool
        try:
            replacement = pool.add_beside(worker.place)
            error = await replacement.first_load
        except ServingError as no_port:
            error = no_port
        if error is None:
            pool.exchange(worker, replacement)
            return
        self._not_before_s = monotonic() + PAUSE_S
        logger.error(
            "%s stays: its replacement could not be started (%s); next attempt in %g s.",
            worker.name,
            error.message,
            PAUSE_S,
        )
        pool.drop_beside()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("A worker of %r could not be replaced.", self._pool, exc_info=error)
