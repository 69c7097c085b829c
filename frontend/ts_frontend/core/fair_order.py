"""Who is next where not everybody is alike: weighted turns instead of plain arrival.

Requests bring up to two names in headers that the operator chose: the priority class, one of a few
with weights (`high=8,normal=4,low=1`), and the key on whose account they run (a tenant). Classes
take turns, a class of weight w taking w jobs in its turn; within a class keys take turns the same
way; the jobs of one key go by arrival. So no class or key waits for more than one round of the
others, whatever they send: nobody starves, and one client's flood delays another's request by at
most one turn of each key that has something waiting.

A key that comes (again) joins at the end of the round; it is forgotten with its last job, so that
there are never more of them than jobs. Clients that can choose their keys can also take more turns:
use a header that an authenticating proxy sets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

from ts_frontend.core.job import Job

MAX_WEIGHT = 1000  # a class may have a thousand jobs before another has one


class Fairness(NamedTuple):
    """By which headers waiting requests are told apart; names in lower case, b"" for none.

    Requests without the header, and those of a class without a weight, are of the class or key b"".
    Weights are whole numbers from 1 to MAX_WEIGHT; what is not named has 1.
    """

    priority_header: bytes = b""
    priority_weights: Mapping[bytes, int] = {}
    key_header: bytes = b""
    key_weights: Mapping[bytes, int] = {}


class _Line(Protocol):
    def pop(self) -> Job: ...

    def __len__(self) -> int: ...


class _Jobs:
    """The jobs of one key, first come first served."""

    __slots__ = ("jobs",)

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()

    def pop(self) -> Job:
        return self.jobs.popleft()

    def __len__(self) -> int:
        return len(self.jobs)


LineT = TypeVar("LineT", bound=_Line)


class _Turns(Generic[LineT]):
    """Lines that take turns, as many jobs in a turn as their weight. Holds no empty line."""

    __slots__ = ("_left", "_weights", "lines")

    def __init__(self, weights: Mapping[bytes, int]) -> None:
        self.lines: dict[bytes, LineT] = {}  # in the order of their turns
        self._weights = weights
        self._left = 0  # what the first line may still take; 0: its turn has not begun

    def pop(self) -> Job:
        name, line = next(iter(self.lines.items()))
        if not self._left:
            self._left = self._weights.get(name, 1)
        job = line.pop()
        self._left -= 1
        if not len(line):
            self.drop(name)
        elif not self._left:
            self.lines[name] = self.lines.pop(name)  # to the end
        return job

    def drop(self, name: bytes) -> None:
        if name == next(iter(self.lines)):
            self._left = 0
        del self.lines[name]

    def __len__(self) -> int:
        return len(self.lines)


class FairOrder:
    """Waiting jobs in the order of `Fairness`; as much of a deque as `BatchQueue` uses.

    Jobs that were looked at, and those put back in front, are in `_front`: their order is settled.
    """

    __slots__ = ("_classes", "_count", "_fairness", "_front")

    def __init__(self, fairness: Fairness) -> None:
        self._fairness = fairness
        self._front: deque[Job] = deque()
        self._classes: _Turns[_Turns[_Jobs]] = _Turns(fairness.priority_weights)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Job:
        """The job that `popleft` will give after `index` others."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        while len(self._front) <= index:
            self._front.append(self._classes.pop())
        return self._front[index]

    def append(self, job: Job) -> None:
        class_name, key = self._names_of(job)
        keys = self._classes.lines.get(class_name)
        if keys is None:
            keys = self._classes.lines[class_name] = _Turns(self._fairness.key_weights)
        line = keys.lines.get(key)
        if line is None:
            line = keys.lines[key] = _Jobs()
        line.jobs.append(job)
        self._count += 1

    def appendleft(self, job: Job) -> None:
        self._front.appendleft(job)
        self._count += 1

    def popleft(self) -> Job:
        job = self[0]
        self._front.popleft()
        self._count -= 1
        return job

    def remove(self, job: Job) -> None:
        """Raises ValueError if it does not wait here."""
        if job in self._front:
            self._front.remove(job)
        else:
            class_name, key = self._names_of(job)
            keys = self._classes.lines.get(class_name)
            line = None if keys is None else keys.lines.get(key)
            if keys is None or line is None:
                raise ValueError("not a job of this order")
            line.jobs.remove(job)
            if not line.jobs:
                keys.drop(key)
                if not keys.lines:
                    self._classes.drop(class_name)
        self._count -= 1

    def _names_of(self, job: Job) -> tuple[bytes, bytes]:
        fairness = self._fairness
        class_name = key = b""
        for name, value in job.request.headers:
            lower = name.lower()
            if lower == fairness.priority_header and value in fairness.priority_weights:
                class_name = value
            elif lower == fairness.key_header:
                key = value
        return class_name, key
