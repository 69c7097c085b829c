"""`BatchQueue`: the jobs that wait for one model version.

Order is arrival (or that of a `FairOrder`), except that re-queued jobs come first. A job that is
cancelled or expires leaves at once, so capacity counts live jobs only and a batch never holds a
dead one; nor one that could not be answered in time any more while others wait that can be. The
queue knows no worker: `on_put` tells its pool that there is something to take.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from ts_frontend.core.batch_times import BatchTimes
from ts_frontend.core.batching import BatchPolicy, Take, WaitUntil
from ts_frontend.core.errors import QueueFull, ServingError
from ts_frontend.core.job import FINISHED, PREDICT, RUNNING, WAITING, Job


class Order(Protocol):
    """Waiting jobs in the order in which they run; a deque is the plainest."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Job: ...

    def append(self, job: Job, /) -> None: ...

    def appendleft(self, job: Job, /) -> None: ...

    def popleft(self) -> Job: ...

    def remove(self, job: Job, /) -> None: ...


class BatchQueue:
    """times: what is known of how long batches take; None as long as nobody has asked."""

    __slots__ = ("_since_s", "_waiting", "capacity", "on_put", "policy", "times")

    def __init__(self, policy: BatchPolicy, capacity: int, order: Order | None = None) -> None:
        self.policy = policy
        self.capacity = capacity
        self.on_put: Callable[[], None] | None = None
        self.times: BatchTimes | None = policy.times
        self._waiting: Order = deque() if order is None else order
        self._since_s: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def remaining_capacity(self) -> int:
        return max(0, self.capacity - len(self._waiting))

    @property
    def is_plain(self) -> bool:
        """Whether who came first goes first, and nobody has asked how long that takes."""
        return self.times is None and isinstance(self._waiting, deque)

    def waited_s(self, now_s: float) -> float:
        """How long the first of those who wait has waited; 0 if nobody does."""
        return now_s - self._waiting[0].arrived_s if self._waiting else 0.0

    def put(self, job: Job) -> None:
        """Let `job` wait. Raises QueueFull, which costs nothing but this comparison."""
        if len(self._waiting) >= self.capacity:
            raise QueueFull("The queue of the model is full.")
        job.holder = self
        self._waiting.append(job)
        if self.on_put is not None:
            self.on_put()

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Jobs that a worker could not finish go first, in their old order, at any capacity."""
        returned = [job for job in jobs if job.state < FINISHED]
        for job in reversed(returned):
            job.state = WAITING
            job.holder = self
            self._waiting.appendleft(job)
        if returned and self.on_put is not None:
            self.on_put()

    def next_batch(self, now_s: float) -> list[Job] | WaitUntil | None:
        """The jobs to run now, until when to wait for more, or None if nothing waits.

        To be called only for a worker that is free: the first call that finds a job starts the
        batch delay.
        """
        waiting = self._waiting
        if not waiting:
            self._since_s = None
            return None
        if waiting[0].deadline_s is not None and not self._drop_late(now_s):
            return None
        if self.policy.size == 1:
            batch = [waiting.popleft()]  # nothing to decide, and the most usual case
        else:
            if self._since_s is None:
                self._since_s = now_s
            decision = self.policy.decide(waiting, self._since_s, now_s)
            if not isinstance(decision, Take):
                return decision
            self._since_s = None
            batch = [waiting.popleft() for _ in range(decision.size)]
            for job in [job for job in batch if job.deadline_s and job.deadline_s <= now_s]:
                batch.remove(job)  # never the first: _drop_late has looked at it
                _expire_soon(job)
        for job in batch:
            job.state = RUNNING
            job.holder = None  # until its worker takes it
            job.taken_s = now_s
        return batch

    def take(self, limit: int, now_s: float) -> list[Job]:
        """Up to `limit` jobs that may join a batch which is already under way; none before a
        describe, which is alone.
        """
        waiting = self._waiting
        batch: list[Job] = []
        while len(batch) < limit and waiting and waiting[0].command is PREDICT:
            if waiting[0].deadline_s is not None and not self._drop_late(now_s):
                break
            job = waiting.popleft()
            job.state = RUNNING
            job.holder = None
            job.taken_s = now_s
            batch.append(job)
        if not waiting:
            self._since_s = None
        return batch

    def _drop_late(self, now_s: float) -> int:
        """Take out the jobs in front whose time is over; how many are left.

        Where nothing else waits, one that will only most likely be late is run all the same: the
        worker would be idle, and the prediction would have no way to learn that it is wrong.
        """
        waiting = self._waiting
        while waiting and (deadline_s := waiting[0].deadline_s) is not None:
            if deadline_s > now_s:
                needed_s = self._needed_s(len(waiting)) if len(waiting) > 1 else None
                if needed_s is None or deadline_s >= now_s + needed_s:
                    break
            _expire_soon(waiting.popleft())
        if not waiting:
            self._since_s = None
        return len(waiting)

    def _needed_s(self, waiting: int) -> float | None:
        """How long the next batch takes when so many wait; None if that is not known."""
        return None if self.times is None else self.times.predict_s(self.policy.size_for(waiting))

    def watch_times(self) -> None:
        """Learn from now on how long batches take: somebody wants to know."""
        if self.times is None:
            self.times = BatchTimes()

    def predict_s(self, workers: int) -> float | None:
        """In how many seconds a job that comes now would be answered, if no worker is idle.

        workers: how many share the work. None: nothing is known. What runs is taken to have just
        begun; so the truth is mostly a little better.
        """
        ahead = len(self._waiting)
        needed_s = self._needed_s(ahead + 1)
        if needed_s is None or workers < 1:
            return None
        batches_ahead = 1 + ahead // self.policy.size_for(ahead + 1)
        return needed_s * (1 + batches_ahead / workers)

    def abandoned(self, job: Job) -> None:
        self._waiting.remove(job)
        if not self._waiting:
            self._since_s = None  # whoever comes next has the whole delay

    def fail_all(self, error: ServingError) -> int:
        """Answer every waiting job with `error`; returns how many there were."""
        count = 0
        # One by one: a client of several jobs cancels the others when it hears of the first.
        while self._waiting:
            self._waiting.popleft().fail(error)
            count += 1
        self._since_s = None
        return count

    def __repr__(self) -> str:
        return f"<BatchQueue {len(self._waiting)}/{self.capacity}>"


def _expire_soon(job: Job) -> None:
    """In a turn of its own: a client that hears of it may send its next request at once."""
    job.holder = None
    asyncio.get_running_loop().call_soon(job.expire)
