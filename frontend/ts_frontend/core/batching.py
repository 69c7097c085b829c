"""When to send a batch and how large: plain functions of what waits and of the time.

`DynamicBatching` is TorchServe's rule (contract, runtime section 3): the first free worker takes
the first job, then up to `size - 1` more, waiting for them at most `delay_s` in all; a describe job
is always alone. A delay of zero takes what is there (TorchServe sends at most two jobs then, for no
reason). `AdaptiveBatching` needs no delay to be chosen: it is told the latency that is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ts_frontend.core.batch_times import BatchTimes
from ts_frontend.core.job import PREDICT, Job


class Take(NamedTuple):
    """Run the first `size` waiting jobs now."""

    size: int


class WaitUntil(NamedTuple):
    """Ask again at this time, or when another job has come. Seconds on the monotonic clock."""

    time_s: float


class Waiting(Protocol):
    """Jobs in the order in which they run."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Job: ...


class BatchPolicy(Protocol):
    @property
    def size(self) -> int:
        """The largest batch."""
        ...

    @property
    def times(self) -> BatchTimes | None:
        """What the policy decides by, to be fed with every batch; None: it needs nothing."""
        ...

    def size_for(self, waiting: int) -> int:
        """How large the next batch will be when so many wait."""
        ...

    def decide(self, waiting: Waiting, since_s: float, now_s: float) -> Take | WaitUntil:
        """What a free worker does with `waiting` (at least one live job).

        since_s: when a free worker first saw the first job.
        """
        ...


def _leading_predictions(waiting: Waiting, limit: int) -> int:
    """How many jobs in front may share a batch, at most `limit`; at least 1."""
    count = 1
    while count < limit and waiting[count].command is PREDICT:
        count += 1
    return count


@dataclass(frozen=True)
class DynamicBatching:
    size: int
    delay_s: float
    times: None = None

    def size_for(self, waiting: int) -> int:
        return min(self.size, waiting)

    def decide(self, waiting: Waiting, since_s: float, now_s: float) -> Take | WaitUntil:
        if waiting[0].command is not PREDICT:
            return Take(1)
        limit = min(self.size, len(waiting))
        count = _leading_predictions(waiting, limit)
        is_closed = count == self.size or count < len(waiting)
        if is_closed or now_s >= since_s + self.delay_s:
            return Take(count)
        return WaitUntil(since_s + self.delay_s)


class AdaptiveBatching:
    """As large a batch as the target latency allows, and never a wait: an idle worker takes what is
    there.

    A request that comes while a worker has just begun waits for that batch and then runs in its
    own, so that the target holds as long as a batch takes no more than half of it. That is the
    usual largest size. Where more waits than batches of that size can answer in time, the target is
    lost for some, and the size is the one that gets most done.
    """

    __slots__ = ("size", "target_s", "times")

    def __init__(self, size: int, target_s: float, times: BatchTimes | None = None) -> None:
        self.size = size
        self.target_s = target_s
        self.times: BatchTimes = BatchTimes() if times is None else times

    def size_for(self, waiting: int, oldest_waited_s: float = 0.0) -> int:
        limit = min(self.size, waiting)
        if limit == 1 or self.times.predict_s(1) is None:
            return limit
        within = self._largest_within(self.target_s / 2, limit)
        if within == limit:
            return limit
        batch_s = self.times.predict_s(within) or 0.0
        all_s = -(-waiting // within) * batch_s
        if oldest_waited_s + batch_s <= self.target_s and all_s <= self.target_s:
            return within
        return self._fastest(limit, within)

    def _largest_within(self, allowed_s: float, limit: int) -> int:
        """The largest size up to `limit` whose batch takes at most `allowed_s`; at least 1."""
        low, high = 1, limit
        while low < high:  # the curve never falls
            middle = (low + high + 1) // 2
            if (self.times.predict_s(middle) or 0.0) <= allowed_s:
                low = middle
            else:
                high = middle - 1
        return low

    def _fastest(self, limit: int, size: int) -> int:
        """The size up to `limit` that answers most requests in a second; the larger of equals."""
        best, best_rate = size, 0.0
        while True:
            rate = size / (self.times.predict_s(size) or 1e-9)
            if rate >= best_rate * 0.999:
                best, best_rate = size, max(rate, best_rate)
            if size == limit:
                return best
            size = min(limit, size + max(1, size // 4))

    def decide(self, waiting: Waiting, since_s: float, now_s: float) -> Take:
        if waiting[0].command is not PREDICT:
            return Take(1)
        size = self.size_for(len(waiting), now_s - waiting[0].arrived_s)
        return Take(_leading_predictions(waiting, size))
