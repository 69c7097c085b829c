"""Who waits, in which order, and who leaves: by example, then against a model of one list."""

from __future__ import annotations

import asyncio

import pytest
from fakes import FakeClock, RecordingConsumer, chunk, new_job
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from ts_frontend.core.batch_queue import BatchQueue
from ts_frontend.core.batching import DynamicBatching, WaitUntil
from ts_frontend.core.errors import DeadlineExceeded, ErrorKind, NoWorker, QueueFull
from ts_frontend.core.job import Command, Job, JobState


def new_queue(size: int = 1, delay_s: float = 0.0, capacity: int = 100) -> BatchQueue:
    return BatchQueue(DynamicBatching(size, delay_s), capacity)


def put_all(queue: BatchQueue, count: int) -> list[Job]:
    jobs = [new_job(str(number)) for number in range(count)]
    for job in jobs:
        queue.put(job)
    return jobs


def take(queue: BatchQueue, now_s: float = 0.0) -> list[Job]:
    batch = queue.next_batch(now_s)
    assert isinstance(batch, list)
    return batch


def test_jobs_leave_in_the_order_of_their_arrival() -> None:
    queue = new_queue(size=2)
    jobs = put_all(queue, 5)
    assert take(queue) == jobs[:2]
    assert take(queue) == jobs[2:4]
    assert take(queue) == jobs[4:]
    assert queue.next_batch(0.0) is None


def test_a_taken_job_runs_and_knows_when_it_was_taken() -> None:
    queue = new_queue()
    (job,) = put_all(queue, 1)
    take(queue, now_s=12.5)
    assert job.state is JobState.RUNNING
    assert job.taken_s == 12.5


def test_a_full_queue_refuses_and_keeps_nothing() -> None:
    queue = new_queue(capacity=2)
    put_all(queue, 2)
    late = new_job("late")
    with pytest.raises(QueueFull) as caught:
        queue.put(late)
    assert caught.value.kind is ErrorKind.OVERLOADED
    assert late.holder is None
    assert len(queue) == 2
    assert queue.remaining_capacity == 0


def test_a_job_that_leaves_makes_room() -> None:
    queue = new_queue(capacity=2)
    jobs = put_all(queue, 2)
    jobs[0].response.cancel()
    assert queue.remaining_capacity == 1
    queue.put(new_job())


@pytest.mark.parametrize("leave", [lambda job: job.response.cancel(), Job.expire])
def test_a_dead_job_is_in_no_batch(leave: object) -> None:
    assert callable(leave)
    queue = new_queue(size=3, delay_s=9.0)
    jobs = put_all(queue, 3)
    leave(jobs[1])
    assert isinstance(queue.next_batch(0.0), WaitUntil)  # one short of a full batch again
    assert take(queue, now_s=9.0) == [jobs[0], jobs[2]]


def test_returned_jobs_go_first_in_their_old_order() -> None:
    queue = new_queue(size=3)
    jobs = put_all(queue, 5)
    batch = take(queue)
    queue.put_back(batch)
    assert {job.state for job in jobs} == {JobState.WAITING}
    assert take(queue) == jobs[:3]
    assert take(queue) == jobs[3:]


def test_jobs_that_ended_meanwhile_are_not_put_back() -> None:
    queue = new_queue(size=3)
    jobs = put_all(queue, 3)
    batch = take(queue)
    jobs[0].response.cancel()
    jobs[1].push(chunk(b"done"))
    queue.put_back(batch)
    assert take(queue) == [jobs[2]]


def test_returned_jobs_find_a_place_in_a_full_queue() -> None:
    queue = new_queue(size=2, capacity=2)
    batch = [*put_all(queue, 2)]
    take(queue)
    put_all(queue, 2)
    queue.put_back(batch)
    assert len(queue) == 4
    assert queue.remaining_capacity == 0


def test_the_delay_begins_when_a_worker_first_sees_a_job() -> None:
    clock = FakeClock()
    queue = new_queue(size=4, delay_s=5.0)
    jobs = put_all(queue, 1)
    clock.advance(60)  # nobody was free
    assert queue.next_batch(clock()) == WaitUntil(clock() + 5.0)
    clock.advance(3)
    jobs += put_all(queue, 1)
    assert queue.next_batch(clock()) == WaitUntil(clock() + 2.0)
    clock.advance(2)
    assert take(queue, clock()) == jobs


def test_the_next_batch_has_a_delay_of_its_own() -> None:
    clock = FakeClock()
    queue = new_queue(size=2, delay_s=5.0)
    put_all(queue, 1)
    queue.next_batch(clock())
    clock.advance(4)
    put_all(queue, 2)
    assert len(take(queue, clock())) == 2
    assert queue.next_batch(clock()) == WaitUntil(clock() + 5.0)


@pytest.mark.parametrize("empty", ["cancel", "expire", "fail_all"])
def test_a_delay_ends_with_the_last_job_that_waited(empty: str) -> None:
    """The client of the next job would otherwise get what another client's job had left of it."""
    clock = FakeClock()
    queue = new_queue(size=2, delay_s=5.0)
    (job,) = put_all(queue, 1)
    queue.next_batch(clock())
    if empty == "fail_all":
        queue.fail_all(NoWorker("gone"))
    elif empty == "cancel":
        job.response.cancel()
    else:
        job.expire()
    clock.advance(4)
    put_all(queue, 1)
    assert queue.next_batch(clock()) == WaitUntil(clock() + 5.0)


def test_the_pool_hears_of_every_arrival() -> None:
    queue = new_queue(size=2)
    calls: list[int] = []
    queue.on_put = lambda: calls.append(len(queue))
    put_all(queue, 2)
    queue.put_back(take(queue))
    queue.put_back([])
    assert calls == [1, 2, 2]


def test_fail_all_answers_everybody_once() -> None:
    queue = new_queue()
    clients = [RecordingConsumer(job.response) for job in put_all(queue, 3)]
    error = NoWorker("none")
    assert queue.fail_all(error) == 3
    assert queue.fail_all(error) == 0
    assert [client.errors for client in clients] == [[error]] * 3
    assert len(queue) == 0


def test_a_client_may_cancel_its_other_jobs_when_one_fails() -> None:
    """It gave up on all of them; the queue was in the middle of failing them."""
    queue = new_queue()
    jobs = put_all(queue, 3)

    class Client(RecordingConsumer):
        def on_error(self, error: object) -> None:
            for job in jobs:
                job.response.cancel()

    jobs[0].response.attach(Client())
    queue.fail_all(NoWorker("none"))
    states = [JobState.FAILED, JobState.CANCELLED, JobState.CANCELLED]
    assert [job.state for job in jobs] == states


# Deadlines.


def put_due(queue: BatchQueue, *deadlines_s: float | None) -> list[Job]:
    jobs = [new_job(deadline_s=deadline_s) for deadline_s in deadlines_s]
    for job in jobs:
        queue.put(job)
    return jobs


async def test_a_job_whose_time_is_over_is_in_no_batch() -> None:
    """Also when the timer that would have said so has yet to run."""
    queue = new_queue(size=3)
    jobs = put_due(queue, 5.0, 20.0, 9.0, None)
    assert take(queue, now_s=10.0) == [jobs[1], jobs[3]]
    await asyncio.sleep(0)
    assert [job.state for job in jobs] == [
        JobState.EXPIRED,
        JobState.RUNNING,
        JobState.EXPIRED,
        JobState.RUNNING,
    ]


async def test_a_queue_of_jobs_whose_time_is_over_is_empty() -> None:
    queue = new_queue()
    jobs = put_due(queue, 5.0, 5.0)
    clients = [RecordingConsumer(job.response) for job in jobs]
    assert queue.next_batch(10.0) is None
    assert len(queue) == 0
    await asyncio.sleep(0)
    assert all(isinstance(client.error, DeadlineExceeded) for client in clients)


async def test_a_client_may_send_more_when_it_hears_that_its_time_is_over() -> None:
    queue = new_queue()
    jobs = put_due(queue, 5.0, 20.0)

    class Client(RecordingConsumer):
        def on_error(self, error: object) -> None:
            put_all(queue, 1)

    jobs[0].response.attach(Client())
    assert take(queue, now_s=10.0) == [jobs[1]]
    assert len(queue) == 0
    await asyncio.sleep(0)
    assert len(queue) == 1


async def test_a_job_that_cannot_be_in_time_makes_way_for_one_that_can() -> None:
    queue = new_queue()
    queue.watch_times()
    assert queue.times is not None
    queue.times.add(1, 2.0)
    jobs = put_due(queue, 11.0, 13.0)
    assert take(queue, now_s=10.0) == [jobs[1]]
    await asyncio.sleep(0)
    assert jobs[0].state is JobState.EXPIRED


async def test_a_job_that_is_likely_late_runs_where_nobody_else_waits() -> None:
    """The prediction may be wrong, and could never be found to be."""
    queue = new_queue()
    queue.watch_times()
    assert queue.times is not None
    queue.times.add(1, 2.0)
    jobs = put_due(queue, 11.0)
    assert take(queue, now_s=10.0) == jobs


# What waits, the batch size, the seconds of a batch, how many workers; in how long a new job is
# answered.
PREDICTIONS = [
    (0, 1, 2.0, 1, 4.0),  # what runs, and its own
    (3, 1, 2.0, 1, 10.0),
    (3, 1, 2.0, 4, 4.0),
    (3, 4, 2.0, 1, 4.0),  # it fills the next batch
    (4, 4, 2.0, 1, 6.0),
    (4, 4, 2.0, 0, None),
]


@pytest.mark.parametrize(("waiting", "size", "batch_s", "workers", "expected_s"), PREDICTIONS)
def test_prediction(
    waiting: int, size: int, batch_s: float, workers: int, expected_s: float | None
) -> None:
    queue = new_queue(size=size)
    assert queue.predict_s(workers) is None
    queue.watch_times()
    assert queue.predict_s(workers) is None
    assert queue.times is not None
    queue.times.add(size, batch_s)
    put_all(queue, waiting)
    assert queue.predict_s(workers) == expected_s


def test_repr_shows_how_full_it_is() -> None:
    queue = new_queue(capacity=7)
    put_all(queue, 2)
    assert repr(queue) == "<BatchQueue 2/7>"


class QueueAgainstAList(RuleBasedStateMachine):
    """Everything that may happen to a queue, in any order; the model is a list of what waits."""

    running = Bundle("running")

    @initialize(size=st.integers(1, 4), delay_s=st.sampled_from([0.0, 5.0]), cap=st.integers(1, 6))
    def build(self, size: int, delay_s: float, cap: int) -> None:
        self.size, self.capacity = size, cap
        self.queue = BatchQueue(DynamicBatching(size, delay_s), cap)
        self.clock = FakeClock()
        self.waiting: list[Job] = []
        self.is_out: list[Job] = []
        self.clients: dict[Job, RecordingConsumer] = {}
        self.count = 0

    @rule(is_describe=st.booleans())
    def put(self, is_describe: bool) -> None:
        self.count += 1
        command = Command.DESCRIBE if is_describe else Command.PREDICT
        job = new_job(str(self.count), command=command)
        self.clients[job] = RecordingConsumer(job.response)
        if len(self.waiting) < self.capacity:
            self.queue.put(job)
            self.waiting.append(job)
        else:
            with pytest.raises(QueueFull):
                self.queue.put(job)
            del self.clients[job]

    @rule(seconds=st.sampled_from([0.1, 3.0, 6.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(target=running)
    def next_batch(self) -> tuple[Job, ...]:
        batch = self.queue.next_batch(self.clock())
        if batch is None:
            assert not self.waiting
            return ()
        if isinstance(batch, WaitUntil):
            assert self.waiting
            assert batch.time_s > self.clock()
            return ()
        assert 1 <= len(batch) <= self.size
        assert batch == self.waiting[: len(batch)]
        assert all(job.state is JobState.RUNNING for job in batch)
        del self.waiting[: len(batch)]
        self.is_out += batch
        return tuple(batch)

    @rule(batch=consumes(running))
    def put_back(self, batch: tuple[Job, ...]) -> None:
        self.queue.put_back(batch)
        alive = [job for job in batch if job in self.is_out]
        self.is_out = [job for job in self.is_out if job not in alive]
        self.waiting[:0] = alive

    @rule(batch=consumes(running))
    def answer(self, batch: tuple[Job, ...]) -> None:
        for job in batch:
            job.push(chunk(b"", is_last=True))
            if job in self.is_out:
                self.is_out.remove(job)

    def some_job(self, index: int) -> Job:
        return list(self.clients)[index % len(self.clients)]

    @precondition(lambda self: self.clients)
    @rule(index=st.integers(0), is_expiry=st.booleans())
    def leave(self, index: int, is_expiry: bool) -> None:
        """Any job, also one that runs or is over."""
        job = self.some_job(index)
        if is_expiry:
            job.expire()
        else:
            job.response.cancel()
        for place in (self.waiting, self.is_out):
            if job in place:
                place.remove(job)

    @rule()
    def fail_all(self) -> None:
        assert self.queue.fail_all(NoWorker("none")) == len(self.waiting)
        self.waiting.clear()

    @invariant()
    def the_queue_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.queue) == len(self.waiting)
        assert self.queue.remaining_capacity == max(0, self.capacity - len(self.waiting))

    @invariant()
    def every_job_is_somewhere_or_has_ended_once(self) -> None:
        """`RecordingConsumer` itself refuses anything after an end."""
        for job, client in getattr(self, "clients", {}).items():
            if job in self.waiting:
                assert job.state is JobState.WAITING
                assert job.holder is self.queue
            elif job in self.is_out:
                assert job.state is JobState.RUNNING
            else:
                assert job.state >= JobState.FINISHED
                assert job.holder is None
                assert client.is_answered or job.state is JobState.CANCELLED
            if client.errors and job.state is JobState.EXPIRED:
                assert isinstance(client.error, DeadlineExceeded)


TestQueueAgainstAList = QueueAgainstAList.TestCase
TestQueueAgainstAList.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
