"""`Job`: a request on its way to a worker and back, finished exactly once."""

from __future__ import annotations

import asyncio
import enum
from typing import Final, Protocol

from ts_frontend.core.errors import DeadlineExceeded, ServingError
from ts_frontend.core.inference import InferenceRequest, ResponseChunk
from ts_frontend.core.response_stream import ResponseStream


class Command(enum.Enum):
    PREDICT = "predict"
    DESCRIBE = "describe"  # always alone in its batch (TorchServe's rule)


class JobState(enum.IntEnum):
    """Ordered, so that `state >= FINISHED` asks whether the job is over."""

    WAITING = 0
    RUNNING = 1
    FINISHED = 2
    FAILED = 3
    CANCELLED = 4
    EXPIRED = 5


# The members that the hot path asks for: Python 3.11 looks one up in its class for longer than it
# compares.
PREDICT: Final = Command.PREDICT
WAITING: Final = JobState.WAITING
RUNNING: Final = JobState.RUNNING
FINISHED: Final = JobState.FINISHED


class Meter(Protocol):
    """A number that the hot path adds to; the metrics room gives it a name."""

    value: float


class Histogram(Protocol):
    def observe(self, value: float) -> None: ...


class JobMeters(Protocol):
    """The counters of one model version, as its metrics name them (microseconds where times)."""

    @property
    def requests(self) -> Meter: ...

    @property
    def latency_us(self) -> Meter: ...

    @property
    def queue_us(self) -> Meter: ...

    @property
    def latency_seconds(self) -> Histogram: ...


class Job:
    """One request for one model version.

    arrived_s, taken_s, deadline_s: seconds on the monotonic clock; taken is when a worker took it.
    timer:  calls `expire` at the deadline.
    deaths: how many workers died with this job on board.
    has_output: a chunk has reached the stream, so it can no longer be run again elsewhere.
    """

    __slots__ = (
        "arrived_s",
        "command",
        "deadline_s",
        "deaths",
        "has_output",
        "holder",
        "meters",
        "request",
        "response",
        "state",
        "taken_s",
        "timer",
    )

    def __init__(
        self,
        request: InferenceRequest,
        arrived_s: float,
        command: Command = PREDICT,
        deadline_s: float | None = None,
        meters: JobMeters | None = None,
    ) -> None:
        self.request = request
        self.command = command
        self.arrived_s = arrived_s
        self.taken_s = 0.0
        self.deadline_s = deadline_s
        self.meters = meters
        self.deaths = 0
        self.has_output = False
        self.state: JobState = WAITING
        self.holder: JobHolder | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.response = ResponseStream()
        self.response.on_cancel = self._cancelled

    def push(self, chunk: ResponseChunk) -> None:
        if self.state >= FINISHED:
            return
        self.has_output = True
        if chunk.is_last:
            self._end(FINISHED)
        self.response.push(chunk)

    def fail(self, error: ServingError) -> None:
        if self.state >= FINISHED:
            return
        self._end(JobState.FAILED)
        self.response.fail(error)

    def expire(self) -> None:
        """The deadline has passed: the client is answered now, wherever the job is."""
        if self.state >= FINISHED:
            return
        self._leave(JobState.EXPIRED)
        self.response.fail(
            DeadlineExceeded("The request's deadline passed before the answer was ready.")
        )

    def _cancelled(self) -> None:
        if self.state < FINISHED:
            self._leave(JobState.CANCELLED)

    def _leave(self, state: JobState) -> None:
        holder = self.holder
        self._end(state)
        if holder is not None:
            holder.abandoned(self)

    def _end(self, state: JobState) -> None:
        self.state = state
        self.holder = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def __repr__(self) -> str:
        return f"<Job {self.request.id.decode()} {self.state.name}>"


class JobHolder(Protocol):
    """Who has the job now, a queue or a worker, and must know when its client wants it no more."""

    def abandoned(self, job: Job) -> None: ...
