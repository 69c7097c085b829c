"""`ConcurrentWorker`: a worker whose handler runs many requests at once (`asyncCommunication`).

Batches are sent as they form and answers come in any order, matched by request id. TorchServe lets
a batch-level error hit everybody in the worker, enforces no response timeout and forgets who was on
board when the worker dies; here an error hits the ids that its reply names, silence of the whole
worker for responseTimeout ends it, and its death is told to the pool, which answers everybody or
has them run again.
"""

from __future__ import annotations

from ts.protocol.messages import PredictReply, encode_predict
from ts_frontend.core.errors import ModelError, WorkerDied
from ts_frontend.core.job import Job
from ts_frontend.core.worker_state import WorkerState
from ts_frontend.workers.batch_worker import push_prediction
from ts_frontend.workers.failure import WorkerFailure
from ts_frontend.workers.worker import Worker, is_wanted

MAX_IN_FLIGHT = 1024
"""Requests in one worker at a time; the model's queue takes what is above."""


class ConcurrentWorker(Worker):
    def _begin_idle(self) -> None:
        self._in_worker: dict[bytes, Job] = {}
        self._suspects: list[Job] = []  # on board, after the death of another worker with them

    @property
    def is_busy(self) -> bool:
        return bool(self._in_worker)

    @property
    def is_full(self) -> bool:
        # A lost connection takes nothing either, though the worker has yet to hear of it.
        return self._session.connection is None or len(self._in_worker) >= MAX_IN_FLIGHT

    @property
    def in_flight(self) -> int:
        return len(self._in_worker)

    @property
    def takes_more(self) -> bool:
        return False  # it is not "ahead": while it is not full it is free

    @property
    def takes_suspect(self) -> bool:
        # One at a time, so that a second death tells who it was; others' work goes on beside it.
        return not self.is_full and not self._suspects

    def run_batch(self, batch: list[Job]) -> None:
        connection = self._session.connection
        if connection is None:
            self.model.queue.put_back(batch)
            return
        was_idle = not self._in_worker
        for job in batch:
            job.holder = self
            self._in_worker[job.request.id] = job
        self.requests += len(batch)
        if batch[0].deaths:
            self._suspects = batch
        if self._cancel_timer is not None:
            self._forget_cancels()
        self._drained.clear()
        connection.send(encode_predict([job.request for job in batch]))
        if was_idle:
            self._due.expect(self.model.config.response_timeout_s)

    def on_predict_reply(self, reply: PredictReply) -> None:
        if not reply.predictions:
            self._heard(reply)
            return
        was_full = self.is_full
        failed: list[Job] | None = None
        for prediction in reply.predictions:
            job = self._in_worker.get(prediction.id)
            if job is None:
                continue  # it was never asked, or has its answer
            if reply.code != 200:
                failed = failed or []
                failed.append(job)
            elif not push_prediction(job, prediction):
                continue
            del self._in_worker[prediction.id]
        if self._in_worker:
            self._due.expect(self.model.config.response_timeout_s)
            self._begin_grace_if_unwanted()
        else:
            self._due.forget()
            self._drained.set()
            if self._cancel_timer is not None:
                self._forget_cancels()
        if failed:
            self._owner.batch_failed(failed, ModelError(reply.code, reply.message))
        if was_full and self.state is WorkerState.READY:
            self._owner.worker_is_free(self)
        if self._suspects and not any(job.request.id in self._in_worker for job in self._suspects):
            self._suspects = []
            self._owner.feed()

    def _is_worked_for_nobody(self) -> bool:
        return bool(self._in_worker) and not any(map(is_wanted, self._in_worker.values()))

    def _give_up_work(self, error: WorkerDied, failure: WorkerFailure | None) -> None:
        jobs, self._in_worker = self._in_worker, {}
        self._suspects = []
        if jobs:
            self._owner.batch_lost(list(jobs.values()), error, failure)
        self._drained.set()
