"""What the data plane asks before it lets a request wait: may it come in, and until when.

A refusal must cost less than an answer, so the questions are comparisons of numbers that are known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ts_frontend.core.deadline import DeadlineHeaders
from ts_frontend.core.errors import DeadlineExceeded, DeadlineUnreachable, ErrorKind, ServerBusy
from ts_frontend.core.inference import InferenceRequest
from ts_frontend.core.job import Job, JobMeters, JobState
from ts_frontend.core.model import Model, Workers

# What is predicted is the mean, and half of all batches are slower. A queue that is a tenth shorter
# keeps its workers as busy.
MARGIN = 1.1


class Load:
    """The live requests of the whole server and the bytes of their inputs, with their limits.

    A limit of 0 is none.
    """

    __slots__ = ("body_bytes", "max_body_bytes", "max_requests", "requests")

    def __init__(self, max_requests: int = 0, max_body_bytes: int = 0) -> None:
        self.max_requests = max_requests
        self.max_body_bytes = max_body_bytes
        self.requests = 0
        self.body_bytes = 0

    @property
    def is_limited(self) -> bool:
        return bool(self.max_requests or self.max_body_bytes)

    def check(self, body_bytes: int) -> None:
        """Raises ServerBusy if a request with so many bytes of input cannot come in now.

        One that is larger than the limit itself comes in when it is alone.
        """
        if self.max_requests and self.requests >= self.max_requests:
            raise ServerBusy.with_requests(self.max_requests)
        if (
            self.max_body_bytes
            and self.body_bytes
            and self.body_bytes + body_bytes > self.max_body_bytes
        ):
            raise ServerBusy.with_bytes(self.max_body_bytes)

    def new_job(
        self,
        request: InferenceRequest,
        arrived_s: float,
        deadline_s: float | None,
        meters: JobMeters | None,
    ) -> Job:
        """A job that counts until it ends. Raises ServerBusy."""
        body_bytes = sum(len(part.body) for part in request.parts)
        self.check(body_bytes)
        return _CountedJob(self, body_bytes, request, arrived_s, deadline_s, meters)


class _CountedJob(Job):
    """A job that is part of the `Load` until it ends."""

    __slots__ = ("_body_bytes", "_load")

    def __init__(
        self,
        load: Load,
        body_bytes: int,
        request: InferenceRequest,
        arrived_s: float,
        deadline_s: float | None,
        meters: JobMeters | None,
    ) -> None:
        super().__init__(request, arrived_s, deadline_s=deadline_s, meters=meters)
        self._load = load
        self._body_bytes = body_bytes
        load.requests += 1
        load.body_bytes += body_bytes

    def _end(self, state: JobState) -> None:
        super()._end(state)
        self._load.requests -= 1
        self._load.body_bytes -= self._body_bytes


@dataclass(frozen=True)
class Admission:
    """How the server takes requests in.

    overload_kind: what refused clients are told: that the server is overloaded, or (THROTTLED) that
                   they ask too much.
    load:          None: nothing is counted.
    """

    deadline_headers: DeadlineHeaders = field(default_factory=lambda: DeadlineHeaders(()))
    overload_kind: ErrorKind = ErrorKind.OVERLOADED
    load: Load | None = None


def check_deadline(model: Model, workers: Workers, deadline_s: float, now_s: float) -> None:
    """Raises DeadlineExceeded, or DeadlineUnreachable where what waits already makes it late.

    While a worker is idle every request is let in: nobody waits longer for it, and only what runs
    can show that a prediction was too high.
    """
    left_s = deadline_s - now_s
    if left_s <= 0:
        raise DeadlineExceeded("The request's deadline passed before it was let in.")
    model.queue.watch_times()
    if workers.has_idle_worker:
        return
    needed_s = model.queue.predict_s(workers.ready_count)
    if needed_s is not None and needed_s * MARGIN > left_s:
        raise DeadlineUnreachable.predicted(needed_s, left_s)
