"""`SequenceQueue`: the waiting jobs of a model that keeps state between the requests of a sequence.

A sequence begins with the first request that bears its id (or bears none and gets one), has a line
of its own, and is bound to the first worker that takes a job of it; only that worker gets the
others, one at a time and in their order, so that a batch holds at most one job of each sequence. A
sequence ends when no request has come for `max_idle_s`, `timeout_s` after it began, when the
handler says so, or with its worker, whose state is gone then. Its number in the model and the
length of each line are limited (contract, runtime section 3).

Ends are seen when somebody looks: nothing happens to a sequence that is over until room is needed
or a request comes for it.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ts_frontend.core.batch_queue import BatchQueue
from ts_frontend.core.batching import BatchPolicy, WaitUntil
from ts_frontend.core.clock import Clock, monotonic
from ts_frontend.core.errors import NoWorker, QueueFull, ServingError
from ts_frontend.core.job import Command, Job, JobState


class SequenceHeaders(NamedTuple):
    """The names of the headers that tell a handler which sequence a request belongs to."""

    id: bytes = b"ts_request_sequence_id"
    start: bytes = b"ts_request_sequence_start"
    end: bytes = b"ts_request_sequence_end"


class SequenceLimits(NamedTuple):
    """timeout_s: 0 for no limit. max_idle_s: 0 lets no sequence begin (TorchServe's rule)."""

    max_idle_s: float
    timeout_s: float
    max_sequences: int
    max_waiting: int  # of one sequence
    headers: SequenceHeaders


class SequenceRefused(NoWorker):
    """No further sequence can begin, or this one has ended with jobs in its line."""

    @classmethod
    def because(cls, reason: str, text: str) -> SequenceRefused:
        error = cls(text)
        error.reason = reason
        return error


class _Sequence:
    __slots__ = ("began_s", "id", "last_s", "running", "waiting", "worker")

    def __init__(self, sequence_id: bytes, now_s: float) -> None:
        self.id = sequence_id
        self.began_s = self.last_s = now_s
        self.waiting: deque[Job] = deque()
        self.running: Job | None = None
        self.worker: object | None = None

    @property
    def is_running(self) -> bool:
        return self.running is not None and self.running.state < JobState.FINISHED


class SequenceQueue(BatchQueue):
    __slots__ = ("_clock", "_describing", "_limits", "_sequences")

    def __init__(
        self,
        policy: BatchPolicy,
        capacity: int,
        limits: SequenceLimits,
        clock: Clock = monotonic,
    ) -> None:
        super().__init__(policy, capacity)
        self._limits = limits
        self._clock = clock
        self._sequences: dict[bytes, _Sequence] = {}
        self._describing: deque[Job] = deque()  # belong to no sequence and go to any worker

    def __len__(self) -> int:
        lines = sum(len(sequence.waiting) for sequence in self._sequences.values())
        return lines + len(self._describing)

    @property
    def remaining_capacity(self) -> int:
        return max(0, self.capacity - len(self))

    def put(self, job: Job) -> None:
        """Let `job` wait in the line of its sequence. Raises QueueFull, SequenceRefused."""
        if len(self) >= self.capacity:
            raise QueueFull("The queue of the model is full.")
        if job.command is Command.DESCRIBE:
            self._describing.append(job)
        else:
            sequence = self._sequence_of(job)
            if len(sequence.waiting) >= self._limits.max_waiting:
                raise QueueFull("The queue of the sequence is full.")
            sequence.last_s = self._clock()
            sequence.waiting.append(job)
        job.holder = self
        if self.on_put is not None:
            self.on_put()

    def _sequence_of(self, job: Job) -> _Sequence:
        now_s = self._clock()
        headers = self._limits.headers
        sequence_id = next((v for n, v in job.request.headers if n == headers.id), b"")
        sequence = self._sequences.get(sequence_id)
        if sequence is not None and self._is_over(sequence, now_s):
            self._end(sequence)
            sequence = None
        if sequence is None:
            for other in list(self._sequences.values()):
                if self._is_over(other, now_s):
                    self._end(other)
            if not self._limits.max_idle_s or len(self._sequences) >= self._limits.max_sequences:
                raise SequenceRefused.because(
                    "too_many_sequences", "No further sequence can begin now (maxNumSequence)."
                )
            if not sequence_id:
                sequence_id = b"ts-seq-" + str(uuid.uuid4()).encode()
                added = [(headers.id, sequence_id), (headers.start, b"true")]
                job.request = job.request._replace(headers=[*job.request.headers, *added])
            sequence = self._sequences[sequence_id] = _Sequence(sequence_id, now_s)
        return sequence

    def _is_over(self, sequence: _Sequence, now_s: float) -> bool:
        limits = self._limits
        if limits.timeout_s and now_s >= sequence.began_s + limits.timeout_s:
            return True
        is_idle = not sequence.waiting and not sequence.is_running
        return is_idle and now_s >= sequence.last_s + limits.max_idle_s

    def _end(self, sequence: _Sequence) -> None:
        self._sequences.pop(sequence.id, None)
        error = SequenceRefused.because("sequence_ended", "The sequence has ended.")
        while sequence.waiting:
            sequence.waiting.popleft().fail(error)

    def end_sequences(self, ids: bytes) -> None:
        """The handler has ended these: several are joined with `;`."""
        for sequence_id in ids.split(b";"):
            sequence = self._sequences.get(sequence_id)
            if sequence is not None:
                self._end(sequence)

    def forget_worker(self, worker: object) -> None:
        """It is gone, and with it the state of its sequences."""
        for sequence in list(self._sequences.values()):
            if sequence.worker is worker:
                self._end(sequence)

    def next_batch_for(
        self, worker: object, room: int, max_sequences: int, now_s: float
    ) -> list[Job]:
        """The next job of up to `room` sequences of `worker`, those first that wait longest.

        max_sequences: how many may be bound to the worker; it takes free ones up to there.
        """
        if self._describing and room >= self.policy.size:
            batch = [self._describing.popleft()]
        else:
            ready = [s for s in self._sequences.values() if s.waiting and not s.is_running]
            ready.sort(key=lambda sequence: sequence.waiting[0].arrived_s)
            bound = sum(s.worker is worker for s in self._sequences.values())
            batch = []
            for sequence in ready:
                if len(batch) == room:
                    break
                if sequence.worker is None and bound < max_sequences:
                    sequence.worker = worker
                    bound += 1
                if sequence.worker is worker:
                    sequence.running = sequence.waiting.popleft()
                    sequence.last_s = max(sequence.last_s, now_s)
                    batch.append(sequence.running)
        for job in batch:
            job.state = JobState.RUNNING
            job.holder = None
            job.taken_s = now_s
        return batch

    def next_batch(self, now_s: float) -> list[Job] | WaitUntil | None:
        raise TypeError("a batch of sequences is always for one worker: next_batch_for")

    def put_back(self, jobs: Iterable[Job]) -> None:
        """A worker that was lost in the very turn has not seen them; its sequences begin anew."""
        for job in jobs:
            job.fail(SequenceRefused.because("sequence_ended", "The sequence's worker is gone."))

    def predict_s(self, workers: int) -> float | None:
        return None  # each sequence has a line of its own

    def abandoned(self, job: Job) -> None:
        for line in (self._describing, *(s.waiting for s in self._sequences.values())):
            if job in line:
                line.remove(job)
                return

    def fail_all(self, error: ServingError) -> int:
        count = 0
        lines = [self._describing, *(s.waiting for s in self._sequences.values())]
        for line in lines:
            while line:
                line.popleft().fail(error)
                count += 1
        return count
