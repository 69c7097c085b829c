"""`ConcurrentWorker`: a worker whose handler runs many requests at once (`asyncCommunication`).

Batches are sent as they form and answers come in any order, matched by request id. TorchServe lets
a batch-level error hit everybody in the worker, enforces no response timeout and forgets who was on
board when the worker dies; here an error hits the ids that its reply names, silence of the whole
worker for responseTimeout ends it, and its death answers everybody.
"""

from __future__ import annotations

from typing import Any

from ts.protocol.messages import PredictReply, encode_predict
from ts_frontend.core.errors import ModelError, ServingError
from ts_frontend.core.job import Job
from ts_frontend.core.worker_state import WorkerState
from ts_frontend.workers.worker import Worker, push_prediction

MAX_IN_FLIGHT = 1024
"""Requests in one worker at a time; the model's queue takes what is above."""


class ConcurrentWorker(Worker):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_worker: dict[bytes, Job] = {}

    @property
    def is_busy(self) -> bool:
        return bool(self._in_worker)

    @property
    def is_full(self) -> bool:
        # A lost connection takes nothing either, though the worker has yet to hear of it.
        return self._connection is None or len(self._in_worker) >= MAX_IN_FLIGHT

    @property
    def in_flight(self) -> int:
        return len(self._in_worker)

    @property
    def takes_more(self) -> bool:
        return False  # it is not "ahead": while it is not full it is free

    def run_batch(self, batch: list[Job]) -> None:
        connection = self._connection
        if connection is None:
            self.model.queue.put_back(batch)
            return
        was_idle = not self._in_worker
        for job in batch:
            job.holder = self
            self._in_worker[job.request.id] = job
        self._drained.clear()
        connection.send(encode_predict([job.request for job in batch]))
        if was_idle:
            self._expect_reply()

    def on_predict_reply(self, reply: PredictReply) -> None:
        error = None if reply.code == 200 else ModelError(reply.code, reply.message)
        was_full = self.is_full
        for prediction in reply.predictions:
            job = self._in_worker.get(prediction.id)
            if job is None:
                continue  # its client left; the answer is nobody's
            if error is not None:
                job.fail(error)
            elif not push_prediction(job, prediction):
                continue
            del self._in_worker[prediction.id]
        if self._in_worker:
            self._expect_reply()
        else:
            self._due_s = None
            self._drained.set()
        if was_full and self.state is WorkerState.READY:
            self._owner.worker_is_free(self)

    def _fail_batches(self, error: ServingError) -> None:
        jobs, self._in_worker = self._in_worker, {}
        for job in jobs.values():
            job.fail(error)
        self._drained.set()
