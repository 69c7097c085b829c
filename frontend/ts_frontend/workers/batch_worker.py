"""`BatchWorker`: a worker whose handler runs one batch at a time, which is the usual kind.

The process answers its batches in their order. More than one may be with it: work is sent ahead to
a fast worker, so that it waits for no round trip. Only the oldest one was begun when it dies.
"""

from __future__ import annotations

from collections import deque

from ts.protocol.messages import (
    MORE_FOLLOWS,
    PIECE_HEADERS,
    Prediction,
    PredictReply,
    encode_predict,
    new_tuple,
)
from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import ModelError, WorkerDied
from ts_frontend.core.inference import ResponseChunk
from ts_frontend.core.job import PREDICT, RUNNING, Job
from ts_frontend.core.worker_state import READY
from ts_frontend.workers.failure import FailureKind, WorkerFailure
from ts_frontend.workers.worker import Worker, is_wanted

# Work for a busy worker may be sent ahead, so that a fast handler waits for no round trip. It may
# add up to this much time, and this many batches: what is sent cannot be given to another worker.
AHEAD_S = 0.001
MAX_AHEAD = 16

# One that takes longer than that still waits, with its processor or GPU, for the answers to go out
# and the next batch to come in, and its caches are cold after. It may be sent one batch ahead if so
# many of its last batches were short.
STEADY = 32

BATCH_TIME_WEIGHT = 0.2  # of the newest batch in the smoothed batch time

# What the handler itself takes is best told by the shortest batches: the others wait for the
# processor and for their turn too. It is forgotten slowly, so that a handler that has become slower
# is seen after some hundred batches, and the smoothed time must not say something quite different.
LEAST_TIME_GROWTH = 1.01  # a batch
MAX_SMOOTHED = 2  # times AHEAD_S

# To wake a second process costs more than so short a handler's batch takes, and the frontend does
# not feed even one worker at this pace.
FAST_S = 50e-6
MAX_SMOOTHED_FAST = 4  # times FAST_S; one that is slow now and then must not keep others waiting


def push_prediction(job: Job, prediction: Prediction) -> bool:
    """Give `job` one piece of its answer; True if the worker marked it as the last one."""
    _, content_type, status, reason, headers, body = prediction
    is_last = headers is not PIECE_HEADERS and MORE_FOLLOWS not in headers
    if job.state is RUNNING:
        if is_last and job.meters is not None and job.command is PREDICT:
            latency_s = monotonic() - job.arrived_s
            job.meters.latency_us.value += latency_s * 1e6
            job.meters.latency_seconds.observe(latency_s)
        job.push(new_tuple(ResponseChunk, (status, reason, content_type, headers, body, is_last)))
    return is_last


class BatchWorker(Worker):
    def _begin_idle(self) -> None:
        self._batches: deque[list[Job]] = deque()
        self._began_s = 0.0  # when the oldest batch became the oldest
        # How long a batch takes, smoothed, and at least; at first nothing is sent ahead.
        self._batch_s = AHEAD_S
        self._least_batch_s = AHEAD_S
        self._last_s: deque[float] = deque(maxlen=STEADY)  # how long the last batches took

    @property
    def is_busy(self) -> bool:
        return bool(self._batches)

    @property
    def is_full(self) -> bool:
        return bool(self._batches)

    @property
    def in_flight(self) -> int:
        return len(self._batches)

    @property
    def takes_more(self) -> bool:
        in_flight = len(self._batches)
        return (
            self.state is READY
            and self._session.connection is not None  # else lost in this very turn
            and in_flight < MAX_AHEAD
            and self._batch_s < MAX_SMOOTHED * AHEAD_S
            and (in_flight + 1) * self._least_batch_s < AHEAD_S
        )

    def takes_next(self, longest_s: float) -> bool:
        return (
            len(self._batches) == 1
            and len(self._last_s) == self._last_s.maxlen
            and max(self._last_s) < longest_s
            and self.state is READY
            and self._session.connection is not None
        )

    @property
    def batch_s(self) -> float:
        return self._batch_s

    @property
    def is_awake(self) -> bool:
        return (
            bool(self._batches)
            and self._least_batch_s < FAST_S
            and self._batch_s < MAX_SMOOTHED_FAST * FAST_S
            and self.takes_more
        )

    @property
    def takes_suspect(self) -> bool:
        return not self._batches and self._session.connection is not None

    def run_batch(self, batch: list[Job]) -> None:
        connection = self._session.connection
        if connection is None:  # lost in this very turn
            self.model.queue.put_back(batch)
            return
        for job in batch:
            job.holder = self
        self.requests += len(batch)
        self._batches.append(batch)
        buffers = encode_predict([job.request for job in batch])
        if len(self._batches) == 1:
            self._drained.clear()
            self._began_s = batch[0].taken_s
            connection.send(buffers)
            self._due.expect(self.model.config.response_timeout_s)
        else:
            connection.send_soon(buffers)

    def on_predict_reply(self, reply: PredictReply) -> None:
        """One reply: an answer, or a part of it, for every job of the oldest batch."""
        if not self._batches:
            if not self._heard(reply):
                self._session.lose(FailureKind.BAD_REPLY, "a reply that nobody asked for")
            return
        batch = self._batches[0]
        predictions = reply.predictions
        if reply.code != 200:
            self._retire(batch)
            # The status that a handler's own failure has is the worker's to choose.
            self._owner.batch_failed(batch, ModelError(reply.code, reply.message))
        elif len(predictions) == len(batch):
            if self._deliver(batch, predictions):
                self._due.expect(self.model.config.response_timeout_s)
                return
            self._retire(batch)
            for job in batch:
                # A stream whose end marker got lost in an odd handler still gets its end.
                if job.state is RUNNING:
                    job.push(ResponseChunk(200, b"", b"", (), b"", True))
        else:
            if not self._heard(reply):
                reason = f"{len(predictions)} answers for {len(batch)} requests"
                self._session.lose(FailureKind.BAD_REPLY, reason)
            return
        if self.state is READY:
            self._owner.worker_is_free(self)

    def _deliver(self, batch: list[Job], predictions: list[Prediction]) -> bool:
        """Give each prediction to its job; True if the batch is not over: more will follow, or it
        was lost.
        """
        has_more = False
        for job, prediction in zip(batch, predictions, strict=True):
            if prediction.id != job.request.id:
                # Never deliver what might be somebody else's answer.
                self._session.lose(FailureKind.BAD_REPLY, "an answer with another request's id")
                return True
            if not push_prediction(job, prediction):
                has_more = True
        return has_more

    def _retire(self, batch: list[Job]) -> None:
        """`batch`, the oldest one, has its reply."""
        self._batches.popleft()
        self._timeouts = 0
        now_s = monotonic()
        took_s = now_s - self._began_s
        self._batch_s += (took_s - self._batch_s) * BATCH_TIME_WEIGHT
        self._least_batch_s *= LEAST_TIME_GROWTH
        if took_s < self._least_batch_s:
            self._least_batch_s = took_s
        self._last_s.append(took_s)
        if (times := self.model.queue.times) is not None:
            times.add(len(batch), took_s)
        self._began_s = now_s
        if self._cancel_timer is not None:
            self._forget_cancels()
        if self._batches:
            self._due.expect(self.model.config.response_timeout_s)
        else:
            self._due.forget()
            self._drained.set()

    def _is_worked_for_nobody(self) -> bool:
        return bool(self._batches) and not any(map(is_wanted, self._batches[0]))

    def _give_up_work(self, error: WorkerDied, failure: WorkerFailure | None) -> None:
        """What was only sent ahead goes back to the queue."""
        batches, self._batches = self._batches, deque()
        if batches:
            running = batches.popleft()
            self.model.queue.put_back(job for batch in batches for job in batch)
            self._owner.batch_lost(running, error, failure)
        self._drained.set()
