"""`SequencePool`: the workers of a model whose requests form sequences (`sequenceBatching`).

Which worker a job goes to is the sequence's choice (`SequenceQueue`), and no job runs a second time
elsewhere: what its sequence had told the first worker is gone.
"""

from __future__ import annotations

from collections.abc import Sequence

from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import ModelError, WorkerDied
from ts_frontend.core.job import Job
from ts_frontend.core.sequence_queue import SequenceQueue
from ts_frontend.workers.failure import WorkerFailure
from ts_frontend.workers.pool import WorkerPool
from ts_frontend.workers.worker import Worker


class SequencePool(WorkerPool):
    @property
    def _queue(self) -> SequenceQueue:
        queue = self.model.queue
        if not isinstance(queue, SequenceQueue):
            raise TypeError(f"{queue!r} has no sequences")
        return queue

    def feed(self) -> None:
        for worker in list(self._idle):
            if worker not in self._idle:
                continue  # what it was given in this loop has come back
            batch = self._next_batch(worker, self.model.config.batch_size)
            if batch:
                self._idle.remove(worker)
                self._hand_over(batch, worker, batch[0].taken_s)
                if worker.is_busy and not worker.is_full:
                    self._idle.append(worker)

    def top_up(self, worker: Worker, room: int) -> None:
        if batch := self._next_batch(worker, room):
            self._hand_over(batch, worker, batch[0].taken_s)

    def _next_batch(self, worker: Worker, room: int) -> list[Job]:
        # An even share, so that the first worker does not bind them all.
        share = -(-self.model.config.max_num_sequence // max(1, self.min_workers))
        return self._queue.next_batch_for(worker, room, share, monotonic())

    def worker_is_gone(self, worker: Worker) -> None:
        self._queue.forget_worker(worker)
        super().worker_is_gone(worker)

    def batch_lost(
        self, jobs: Sequence[Job], error: WorkerDied, failure: WorkerFailure | None
    ) -> None:
        for job in jobs:
            job.fail(error)

    def batch_failed(self, jobs: Sequence[Job], error: ModelError) -> None:
        for job in jobs:
            job.fail(error)
