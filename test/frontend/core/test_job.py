"""A job ends exactly once, whoever is first, and says so to whoever holds it."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from fakes import RecordingConsumer, chunk, new_job

from ts_frontend.core.errors import DeadlineExceeded, ErrorKind, ServingError, WorkerDied
from ts_frontend.core.job import Job, JobState


class Holder:
    def __init__(self, *jobs: Job) -> None:
        self.left: list[Job] = []
        for job in jobs:
            job.holder = self

    def abandoned(self, job: Job) -> None:
        self.left.append(job)


def finish(job: Job) -> None:
    job.push(chunk(b"answer"))


def fail(job: Job) -> None:
    job.fail(WorkerDied())


def cancel(job: Job) -> None:
    job.response.cancel()


ENDS = {
    finish: JobState.FINISHED,
    fail: JobState.FAILED,
    Job.expire: JobState.EXPIRED,
    cancel: JobState.CANCELLED,
}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(ENDS, repeat=2)))
def test_the_first_end_is_the_only_one(first: object, second: object) -> None:
    assert callable(first)
    assert callable(second)
    job = new_job()
    holder = Holder(job)
    client = RecordingConsumer(job.response)
    first(job)
    second(job)
    assert job.state is ENDS[first]
    assert len(client.chunks) + len(client.errors) == (0 if first is cancel else 1)
    # Only who goes away by itself is missed by its holder.
    assert holder.left == ([job] if first in (Job.expire, cancel) else [])
    assert job.holder is None


def test_states_are_ordered_so_that_an_end_is_a_comparison() -> None:
    over = [state for state in JobState if state >= JobState.FINISHED]
    assert set(over) == set(ENDS.values())


def test_a_stream_runs_until_its_last_chunk() -> None:
    job = new_job()
    job.state = JobState.RUNNING
    client = RecordingConsumer(job.response)
    assert not job.has_output
    job.push(chunk(b"1", is_last=False))
    assert job.has_output
    assert job.state is JobState.RUNNING
    job.push(chunk(b"2"))
    job.push(chunk(b"3"))
    assert client.bodies == [b"1", b"2"]
    assert job.state is JobState.FINISHED


def test_an_expired_job_tells_its_client_why() -> None:
    job = new_job()
    client = RecordingConsumer(job.response)
    job.expire()
    assert isinstance(client.error, DeadlineExceeded)
    assert client.error.kind is ErrorKind.DEADLINE_EXCEEDED


@pytest.mark.parametrize("end", ENDS)
async def test_the_deadline_is_forgotten_with_the_end(end: object) -> None:
    assert callable(end)
    job = new_job()
    job.timer = timer = asyncio.get_running_loop().call_later(60, job.expire)
    end(job)
    assert timer.cancelled()
    assert job.timer is None


async def test_the_deadline_ends_a_job() -> None:
    job = new_job()
    job.timer = asyncio.get_running_loop().call_later(0, job.expire)
    with pytest.raises(DeadlineExceeded):
        await job.response.wait_complete()


def test_a_client_that_does_not_read_loses_its_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that reads a worker serves other clients too and cannot wait for this one."""
    monkeypatch.setattr("ts_frontend.core.response_stream.MAX_BUFFERED_BYTES", 10)
    job = new_job()
    holder = Holder(job)
    for _ in range(3):
        job.push(chunk(b"12345", is_last=False))
    assert holder.left == [job]
    assert job.state is JobState.CANCELLED
    client = RecordingConsumer(job.response)
    assert client.bodies == [b"12345"] * 3
    assert client.error.kind is ErrorKind.CANCELLED


def test_repr_names_the_request_and_its_state() -> None:
    job = new_job("7-abc")
    assert repr(job) == "<Job 7-abc WAITING>"
    job.fail(ServingError("no"))
    assert repr(job) == "<Job 7-abc FAILED>"
