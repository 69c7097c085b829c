"""`ContinuousWorker`: a worker whose handler works in rounds (`continuousBatching`).

Every round sends all requests on board, those that were sent before without their inputs (contract,
wire protocol sections 2.2 and 3.3), and each answer says whether its request is done. Between two
rounds the places of those that are done, or that nobody waits for any more, are given to whoever
waits; only for the first request of an empty worker is there a delay.
"""

from __future__ import annotations

from ts.protocol.messages import PredictReply, encode_predict
from ts_frontend.core.errors import ModelError, WorkerDied
from ts_frontend.core.job import Job, JobState
from ts_frontend.core.sequence_queue import SequenceQueue
from ts_frontend.core.worker_state import WorkerState
from ts_frontend.workers.batch_worker import push_prediction
from ts_frontend.workers.failure import FailureKind, WorkerFailure
from ts_frontend.workers.worker import Worker, is_wanted


class ContinuousWorker(Worker):
    def _begin_idle(self) -> None:
        self._running: list[Job] = []
        self._seen = 0  # how many of them, from the first on, the process knows
        self._is_in_round = False
        self._is_between_rounds = False

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    @property
    def is_full(self) -> bool:
        return self._is_in_round or self._session.connection is None

    @property
    def in_flight(self) -> int:
        return len(self._running)

    @property
    def takes_more(self) -> bool:
        return False  # there is nothing between two rounds that it would wait for

    @property
    def takes_suspect(self) -> bool:
        return not self._running and self._session.connection is not None

    def run_batch(self, batch: list[Job]) -> None:
        if self._session.connection is None:  # lost in this very turn
            self.model.queue.put_back(batch)
            return
        for job in batch:
            job.holder = self
        self.requests += len(batch)
        self._running += batch
        self._drained.clear()
        if not self._is_between_rounds:
            self._begin_round()

    def _begin_round(self) -> None:
        connection = self._session.connection
        if connection is None:
            return
        requests = [job.request for job in self._running]
        requests[: self._seen] = [request._replace(parts=()) for request in requests[: self._seen]]
        self._seen = len(requests)
        self._is_in_round = True
        connection.send(encode_predict(requests))
        self._due.expect(self.model.config.response_timeout_s)

    def on_predict_reply(self, reply: PredictReply) -> None:
        if not self._is_in_round:
            if not self._heard(reply):
                self._session.lose(FailureKind.BAD_REPLY, "a reply that nobody asked for")
            return
        predictions = reply.predictions
        jobs = self._running
        if reply.code != 200:
            self._end_round([])
            error = ModelError(reply.code, reply.message)
            for job in jobs:
                job.fail(error)
        elif [prediction.id for prediction in predictions] != [job.request.id for job in jobs]:
            # Never deliver what might be somebody else's answer.
            if not self._heard(reply):
                self._session.lose(FailureKind.BAD_REPLY, "answers that are not this round's")
            return
        else:
            left = []
            for job, prediction in zip(jobs, predictions, strict=True):
                is_last = push_prediction(job, prediction)
                self._end_sequences(prediction.headers)
                if not is_last and job.state is JobState.RUNNING:
                    left.append(job)
            self._end_round(left)
        self._go_on()

    def _end_round(self, left: list[Job]) -> None:
        self._running = left
        self._seen = len(left)
        self._is_in_round = False
        self._timeouts = 0
        self._due.forget()
        if self._cancel_timer is not None:
            self._forget_cancels()

    def _go_on(self) -> None:
        """The next round with whom it takes in; without anybody on board the worker is free."""
        room = self.model.config.batch_size - len(self._running)
        if self._running and room > 0 and self.state is WorkerState.READY:
            self._is_between_rounds = True
            try:
                self._owner.top_up(self, room)
            finally:
                self._is_between_rounds = False
        if self._running:
            self._begin_round()
            return
        self._drained.set()
        if self.state is WorkerState.READY:
            self._owner.worker_is_free(self)

    def _end_sequences(self, headers: list[tuple[bytes, bytes]]) -> None:
        queue = self.model.queue
        if not isinstance(queue, SequenceQueue):
            return
        for name, value in headers:
            if name == self.model.config.sequence_headers.end:
                queue.end_sequences(value)

    def _is_worked_for_nobody(self) -> bool:
        return bool(self._running) and not any(map(is_wanted, self._running))

    def _give_up_work(self, error: WorkerDied, failure: WorkerFailure | None) -> None:
        jobs, self._running = self._running, []
        self._seen = 0
        self._is_in_round = False
        if jobs:
            self._owner.batch_lost(jobs, error, failure)
        self._drained.set()
