"""When to send a batch and how large: plain functions of what waits and of the time.

TorchServe's rule (contract, runtime section 3): the first free worker takes the first job, then up
to `size - 1` more, waiting for them at most `delay_s` in all; a describe job is always alone. A
delay of zero takes what is there (TorchServe sends at most two jobs then, for no reason).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ts_frontend.core.job import Command, Job


class Take(NamedTuple):
    """Run the first `size` waiting jobs now."""

    size: int


class WaitUntil(NamedTuple):
    """Ask again at this time, or when another job has come. Seconds on the monotonic clock."""

    time_s: float


class DynamicBatching(NamedTuple):
    size: int
    delay_s: float

    def decide(self, waiting: Sequence[Job], since_s: float, now_s: float) -> Take | WaitUntil:
        """What a free worker does with `waiting` (at least one live job, in the order to run).

        since_s: when a free worker first saw the first job.
        """
        if waiting[0].command is Command.DESCRIBE:
            return Take(1)
        limit = min(self.size, len(waiting))
        count = 1
        while count < limit and waiting[count].command is Command.PREDICT:
            count += 1
        is_closed = count == self.size or count < len(waiting)
        if is_closed or now_s >= since_s + self.delay_s:
            return Take(count)
        return WaitUntil(since_s + self.delay_s)
