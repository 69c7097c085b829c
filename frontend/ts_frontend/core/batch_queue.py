"""`BatchQueue`: the jobs that wait for one model version.

Order is arrival, except that re-queued jobs come first. A job that is cancelled or expires leaves
at once, so capacity counts live jobs only and a batch never holds a dead one. The queue knows no
worker: `on_put` tells its pool that there is something to take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from ts_frontend.core.batching import DynamicBatching, Take, WaitUntil
from ts_frontend.core.errors import QueueFull, ServingError
from ts_frontend.core.job import Job, JobState


class BatchQueue:
    __slots__ = ("_since_s", "_waiting", "capacity", "on_put", "policy")

    def __init__(self, policy: DynamicBatching, capacity: int) -> None:
        self.policy = policy
        self.capacity = capacity
        self.on_put: Callable[[], None] | None = None
        self._waiting: deque[Job] = deque()
        self._since_s: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def remaining_capacity(self) -> int:
        return max(0, self.capacity - len(self._waiting))

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
        returned = [job for job in jobs if job.state < JobState.FINISHED]
        for job in reversed(returned):
            job.state = JobState.WAITING
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
        for job in batch:
            job.state = JobState.RUNNING
            job.holder = None  # until its worker takes it
            job.taken_s = now_s
        return batch

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
