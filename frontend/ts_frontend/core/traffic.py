"""`Traffic`: how the requests for a name are divided while a new version of it is on trial.

A request that names no version goes to the current one, or (canary) to the new one; of the others
some are copied to the new one (shadow), whose answers nobody sees. What becomes of the requests is
noted in the `Figures` of the two versions; somebody else reads them and decides.

A canary request that the new version fails before it has given any output goes to the current
version: its client sees an answer and no error. Where a handler may see a request only once
(`idempotent: false`) that is done only for what the new version did not take at all.

The default version's `Model` holds the traffic for as long as the trial lasts; without one a
request costs a look at that attribute.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ts_frontend.core.clock import Clock, monotonic
from ts_frontend.core.errors import (
    DeadlineUnreachable,
    ErrorKind,
    ModelError,
    NoWorker,
    ServerBusy,
    ServingError,
)
from ts_frontend.core.inference import InferenceRequest, ResponseChunk
from ts_frontend.core.job import Job, Meter
from ts_frontend.core.model import Model
from ts_frontend.core.response_stream import ResponseStream

WINDOW = 1000
"""How many of a version's newest requests its figures are of."""

MAX_SHADOWS = 64
"""How many copies may be under way at a time."""

_FAILURES = frozenset(
    {ErrorKind.UNAVAILABLE, ErrorKind.OUT_OF_MEMORY, ErrorKind.MODEL_ERROR, ErrorKind.INTERNAL}
)


def is_version_failure(error: ServingError) -> bool:
    """Whether it is the version that failed, not its client and not the server as a whole."""
    if isinstance(error, ModelError):
        return error.code >= 500 or error.code == 413  # 413: a worker that ran out of memory
    if isinstance(error, (NoWorker, DeadlineUnreachable)):
        return True
    return error.kind in _FAILURES and not isinstance(error, ServerBusy)


class Outcome(NamedTuple):
    seconds: float
    is_failure: bool


class TrialMeters(Protocol):
    """What one version counts on trial, as the metrics name it."""

    @property
    def answered(self) -> Meter: ...

    @property
    def failed(self) -> Meter: ...


class Summary(NamedTuple):
    """Figures at a glance. p50_ms, p99_ms: 0 without requests."""

    requests: int
    failures: int
    p50_ms: float
    p99_ms: float

    @property
    def failure_rate(self) -> float:
        return self.failures / self.requests if self.requests else 0.0


class Figures:
    """What became of the newest `WINDOW` requests of one version since the last `restart`.

    last_failure: in words.
    """

    def __init__(self, meters: TrialMeters | None = None, clock: Clock = monotonic) -> None:
        self.meters = meters
        self.clock = clock
        self.last_failure = ""
        self._outcomes: deque[Outcome] = deque(maxlen=WINDOW)
        self.under_way: dict[_Attempt, float] = {}  # since when

    def restart(self) -> None:
        """A new step begins; what is under way counts in it when it ends."""
        self._outcomes.clear()

    def note(self, seconds: float, failure: str = "") -> None:
        """failure: why it failed, "" if it did not."""
        self._outcomes.append(Outcome(seconds, bool(failure)))
        if failure:
            self.last_failure = failure
        if self.meters is not None:
            (self.meters.failed if failure else self.meters.answered).value += 1

    def summary(self, overdue_s: float = 0) -> Summary:
        """What has ended, and what runs for longer than `overdue_s` (0: none of it) as if it ended
        now: a version that hangs would have no latency at all.
        """
        times_s = [outcome.seconds for outcome in self._outcomes]
        if overdue_s:
            now_s = self.clock()
            ages_s = (now_s - began_s for began_s in self.under_way.values())
            times_s += [age_s for age_s in ages_s if age_s > overdue_s]
        times_s.sort()
        failures = sum(outcome.is_failure for outcome in self._outcomes)
        count = len(times_s)
        if not count:
            return Summary(0, 0, 0.0, 0.0)
        return Summary(count, failures, times_s[count // 2] * 1000, times_s[_rank_99(count)] * 1000)


def _rank_99(count: int) -> int:
    return max(0, -(-count * 99 // 100) - 1)


Enter = Callable[[Model], ResponseStream]
"""Let the request wait for a version; raises as `DataPlane.predict`."""


class Traffic:
    """canary_percent, shadow_percent: of the requests that name no version; those that the canary
                    takes are not shadowed.
    sticky_header:  requests with the same value there go to the same version while the share does
                    not shrink; b"" or a request without it: they take turns.
    moved:          canary requests that the current version answered in the end.
    skipped:        copies that were not sent, as the new version had enough to do.
    differing:      copies whose status was another than that of the answer.
    """

    def __init__(
        self,
        current: Model,
        candidate: Model,
        *,
        sticky_header: bytes = b"",
        current_figures: Figures | None = None,
        candidate_figures: Figures | None = None,
    ) -> None:
        self.current = current
        self.candidate = candidate
        self.canary_percent = 0.0
        self.shadow_percent = 0.0
        self.current_figures = current_figures or Figures()
        self.candidate_figures = candidate_figures or Figures()
        self.moved = 0
        self.skipped = 0
        self.differing = 0
        self._sticky_header = sticky_header.lower()
        self._canary_due = 0.0
        self._shadow_due = 0.0
        self._copies: set[ResponseStream] = set()  # under way

    def open(self) -> None:
        """From here on requests come through here. The current version has to be the default."""
        self.current.traffic = self

    def close(self) -> None:
        """The trial is over, at once: what comes now goes where it would without one."""
        self.canary_percent = self.shadow_percent = 0.0
        if self.current.traffic is self:
            self.current.traffic = None
        while self._copies:
            self._copies.pop().cancel()

    def move_all(self) -> None:
        """Have the current version answer what the new one has given no output for."""
        if self.candidate.config.care.is_idempotent:
            for attempt in list(self.candidate_figures.under_way):
                attempt.move()

    def predict(self, request: InferenceRequest, enter: Enter) -> ResponseStream:
        """The answer to a request that names no version. Raises as `DataPlane.predict`."""
        if self.canary_percent and self._is_for_canary(request):
            attempt = _Attempt(self.candidate_figures, self, enter)
            try:
                attempt.begin(enter(self.candidate))
            except ServingError as error:
                if not is_version_failure(error):
                    raise
                self.candidate_figures.note(0.0, error.message)
                self.moved += 1
            else:
                return attempt.outer
        attempt = _Attempt(self.current_figures)
        stream = enter(self.current)
        if self.shadow_percent and self._is_for_shadow():
            attempt.twin = self._shadow(request)
        attempt.begin(stream)
        return attempt.outer

    def _is_for_canary(self, request: InferenceRequest) -> bool:
        if self._sticky_header:
            for name, value in request.headers:
                if name.lower() == self._sticky_header:
                    return zlib.crc32(value) % 10_000 < self.canary_percent * 100
        self._canary_due += self.canary_percent
        if self._canary_due < 100:
            return False
        self._canary_due -= 100
        return True

    def _is_for_shadow(self) -> bool:
        self._shadow_due += self.shadow_percent
        if self._shadow_due < 100:
            return False
        self._shadow_due -= 100
        return True

    def _shadow(self, request: InferenceRequest) -> _Twin | None:
        """Copy a request to the new version, if it has nothing else to do."""
        model = self.candidate
        queue = model.queue
        if (
            len(queue) >= queue.policy.size
            or len(self._copies) >= MAX_SHADOWS
            or model.workers is None
            or not model.workers.can_serve
        ):
            self.skipped += 1
            return None
        now_s = self.candidate_figures.clock()
        # Of no `Load`: copies must not keep clients out.
        job = Job(request, now_s, meters=model.meters)
        try:
            queue.put(job)
        except ServingError:
            self.skipped += 1
            return None
        if model.meters is not None:
            model.meters.requests.value += 1
        twin = _Twin(self)
        self._copies.add(job.response)
        job.response.attach(_Shadow(self, twin, job.response, now_s))
        return twin

    def copy_ended(self, stream: ResponseStream) -> None:
        self._copies.discard(stream)


class _Attempt:
    """A request with one version: passes its answer on, and notes how it went.

    traffic, enter: of a canary request, to have the current version answer it.
    twin:           what compares the answer with the copy's.
    """

    __slots__ = ("_enter", "_figures", "_has_output", "_inner", "_traffic", "outer", "twin")

    def __init__(
        self, figures: Figures, traffic: Traffic | None = None, enter: Enter | None = None
    ) -> None:
        self.outer = ResponseStream()
        self.outer.on_cancel = self._cancelled
        self.twin: _Twin | None = None
        self._figures = figures
        self._traffic = traffic
        self._enter = enter
        self._inner: ResponseStream | None = None
        self._has_output = False

    def begin(self, inner: ResponseStream) -> None:
        self._inner = inner
        self._figures.under_way[self] = self._figures.clock()
        inner.attach(self)

    # The consumer of the version's answer.

    def on_chunk(self, chunk: ResponseChunk) -> None:
        if self._inner is None:
            return  # the current version answers by now
        if not self._has_output:
            if self.twin is not None:
                self.twin.hear(chunk.status)
            if chunk.status >= 500:
                self._note(f"the handler chose the status {chunk.status}")
                if self._may_move:
                    self._move()
                    return
            self._has_output = True
        if chunk.is_last:
            self._note()
        self.outer.push(chunk)

    def on_error(self, error: ServingError) -> None:
        if self._inner is None:
            return
        is_failure = is_version_failure(error)
        if self.twin is not None and not self._has_output:
            self.twin.hear(500 if is_failure else 400)
        if is_failure:
            self._note(error.message)
            was_taken = not isinstance(error, NoWorker)
            is_canary = self._traffic is not None
            if is_canary and not self._has_output and (self._may_move or not was_taken):
                self._move()
                return
        elif error.kind is ErrorKind.DEADLINE_EXCEEDED:
            self._note()  # for the latency it took at least so long
        else:
            self._figures.under_way.pop(self, None)
        self.outer.fail(error)

    def _cancelled(self) -> None:
        self._figures.under_way.pop(self, None)
        if self._inner is not None:
            self._inner.cancel()

    def _note(self, failure: str = "") -> None:
        began_s = self._figures.under_way.pop(self, None)
        if began_s is not None:
            self._figures.note(self._figures.clock() - began_s, failure)

    # To the current version.

    @property
    def _may_move(self) -> bool:
        return self._traffic is not None and self._traffic.candidate.config.care.is_idempotent

    def move(self) -> None:
        """Take it away from the new version, if that has given no output yet."""
        if not self._has_output and not self.outer.is_ended:
            self._figures.under_way.pop(self, None)
            self._move()

    def _move(self) -> None:
        traffic, enter, inner = self._traffic, self._enter, self._inner
        if traffic is None or enter is None or inner is None:
            raise RuntimeError("only a canary request can be moved")
        traffic.moved += 1
        self._inner = None
        inner.cancel()
        again = _Attempt(traffic.current_figures)
        again.outer = self.outer
        self.outer.on_cancel = again._cancelled
        try:
            again.begin(enter(traffic.current))
        except ServingError as error:
            self.outer.fail(error)


class _Twin:
    """Compares the status of a copy with that of the answer; 500 and 400 stand for failures."""

    __slots__ = ("_status", "_traffic")

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._status = 0

    def hear(self, status: int) -> None:
        """The status of either; called once for each."""
        if not self._status:
            self._status = status
        elif self._status // 100 != status // 100:
            self._traffic.differing += 1


class _Shadow:
    """The consumer of a copy's answer, which it only notes."""

    __slots__ = ("_began_s", "_has_output", "_stream", "_traffic", "_twin")

    def __init__(
        self, traffic: Traffic, twin: _Twin, stream: ResponseStream, began_s: float
    ) -> None:
        self._traffic = traffic
        self._twin = twin
        self._stream = stream
        self._began_s = began_s
        self._has_output = False

    def on_chunk(self, chunk: ResponseChunk) -> None:
        failure = ""
        if not self._has_output:
            self._has_output = True
            self._twin.hear(chunk.status)
            if chunk.status >= 500:
                failure = f"the handler chose the status {chunk.status}"
        if chunk.is_last or failure:
            self._end(failure)

    def on_error(self, error: ServingError) -> None:
        is_failure = is_version_failure(error)
        if not self._has_output:
            self._twin.hear(500 if is_failure else 400)
        self._end(error.message if is_failure else "")

    def _end(self, failure: str) -> None:
        if self._began_s < 0:
            return
        figures = self._traffic.candidate_figures
        figures.note(figures.clock() - self._began_s, failure)
        self._began_s = -1.0
        self._traffic.copy_ended(self._stream)
