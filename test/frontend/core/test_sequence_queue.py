"""Whose turn it is where a sequence belongs to one worker."""

from __future__ import annotations

import pytest
from fakes import FakeClock, RecordingConsumer, chunk
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.core.batching import DynamicBatching
from ts_frontend.core.errors import NoWorker, QueueFull
from ts_frontend.core.inference import InferenceRequest
from ts_frontend.core.job import Command, Job, JobState
from ts_frontend.core.sequence_queue import (
    SequenceHeaders,
    SequenceLimits,
    SequenceQueue,
    SequenceRefused,
)

HEADERS = SequenceHeaders()
A, B = "worker a", "worker b"


def new_queue(
    clock: FakeClock | None = None,
    *,
    max_idle_s: float = 10,
    timeout_s: float = 0,
    max_sequences: int = 4,
    max_waiting: int = 3,
) -> SequenceQueue:
    limits = SequenceLimits(max_idle_s, timeout_s, max_sequences, max_waiting, HEADERS)
    return SequenceQueue(DynamicBatching(4, 0.0), 100, limits, clock or FakeClock())


def put(queue: SequenceQueue, sequence: str, name: str = "", **more: object) -> Job:
    headers = [(HEADERS.id, sequence.encode())] if sequence else []
    job = Job(InferenceRequest(name.encode(), headers, []), 0.0, **more)
    queue.put(job)
    return job


def take(queue: SequenceQueue, worker: str = A, room: int = 4, share: int = 4) -> list[Job]:
    return queue.next_batch_for(worker, room, share, 0.0)


def test_a_batch_has_one_job_of_each_sequence_and_the_next_waits_for_its_answer() -> None:
    queue = new_queue()
    x1, x2, y1 = put(queue, "x"), put(queue, "x"), put(queue, "y")
    assert take(queue) == [x1, y1]
    assert take(queue) == []
    x1.push(chunk(b""))
    assert take(queue) == [x2]


def test_a_sequence_stays_with_its_worker() -> None:
    queue = new_queue()
    x1, x2 = put(queue, "x"), put(queue, "x")
    assert take(queue, A) == [x1]
    x1.push(chunk(b""))
    assert take(queue, B) == []
    assert take(queue, A) == [x2]


def test_a_worker_takes_its_share_of_sequences() -> None:
    queue = new_queue()
    jobs = [put(queue, name) for name in "wxyz"]
    assert take(queue, A, share=2) == jobs[:2]
    assert take(queue, B, share=2) == jobs[2:]


def test_only_as_many_as_there_is_room_for() -> None:
    queue = new_queue()
    jobs = [put(queue, name) for name in "xyz"]
    assert take(queue, room=2) == jobs[:2]


def test_a_request_without_an_id_begins_a_sequence_with_one() -> None:
    queue = new_queue()
    headers = dict(put(queue, "").request.headers)
    assert headers[HEADERS.id].startswith(b"ts-seq-")
    assert headers[HEADERS.start] == b"true"


def test_the_limits() -> None:
    queue = new_queue(max_sequences=2, max_waiting=2)
    for name in ("x", "x", "y"):
        put(queue, name)
    with pytest.raises(QueueFull):
        put(queue, "x")
    with pytest.raises(SequenceRefused) as caught:
        put(queue, "z")
    assert isinstance(caught.value, NoWorker)
    assert caught.value.reason == "too_many_sequences"
    assert len(queue) == 3


def test_without_an_idle_time_no_sequence_begins() -> None:
    with pytest.raises(SequenceRefused):
        put(new_queue(max_idle_s=0), "x")


def test_an_idle_sequence_makes_room_for_another() -> None:
    clock = FakeClock()
    queue = new_queue(clock, max_sequences=1)
    job = put(queue, "x")
    clock.advance(60)  # it is not idle while it waits
    with pytest.raises(SequenceRefused):
        put(queue, "y")
    queue.next_batch_for(A, 1, 1, clock())
    with pytest.raises(SequenceRefused):  # nor while it runs
        put(queue, "y")
    job.push(chunk(b""))
    clock.advance(9)
    with pytest.raises(SequenceRefused):
        put(queue, "y")
    clock.advance(1)
    put(queue, "y")


def test_a_sequence_ends_at_its_timeout_with_what_waits_in_it() -> None:
    clock = FakeClock()
    queue = new_queue(clock, timeout_s=5)
    first, second = put(queue, "x"), put(queue, "x")
    take(queue)
    client = RecordingConsumer(second.response)
    clock.advance(5)
    put(queue, "x")  # begins anew
    assert client.error.reason == "sequence_ended"
    assert first.state is JobState.RUNNING
    assert len(queue) == 1


def test_the_handler_ends_sequences() -> None:
    queue = new_queue(max_sequences=2)
    for job in (put(queue, "x"), put(queue, "y")):
        take(queue)
        job.push(chunk(b""))
    queue.end_sequences(b"x;y;unknown")
    put(queue, "v")
    put(queue, "w")


def test_a_sequence_ends_with_its_worker() -> None:
    queue = new_queue()
    first, second, other = put(queue, "x"), put(queue, "x"), put(queue, "y")
    take(queue, A, share=1)
    client = RecordingConsumer(second.response)
    queue.forget_worker(A)
    assert client.error.reason == "sequence_ended"
    first.fail(NoWorker("died"))
    assert take(queue, B) == [other]
    again = put(queue, "x")
    assert take(queue, B) == [again]


def test_a_describe_is_alone_and_of_no_sequence() -> None:
    queue = new_queue()
    describe = put(queue, "", command=Command.DESCRIBE)
    put(queue, "x")
    assert take(queue, room=3) != [describe]  # into a batch under way it does not fit
    assert take(queue) == [describe]


def test_who_leaves_is_in_no_batch() -> None:
    queue = new_queue()
    jobs = [put(queue, "x"), put(queue, "x"), put(queue, "", command=Command.DESCRIBE)]
    for job in (jobs[0], jobs[2]):
        job.response.cancel()
    assert take(queue) == [jobs[1]]


def test_fail_all_answers_everybody() -> None:
    queue = new_queue()
    jobs = [put(queue, "x"), put(queue, "y"), put(queue, "", command=Command.DESCRIBE)]
    assert queue.fail_all(NoWorker("none")) == 3
    assert {job.state for job in jobs} == {JobState.FAILED}
    assert len(queue) == 0


@given(st.lists(st.sampled_from(["x", "y", "z", "take a", "take b", "answer"]), max_size=60))
def test_each_sequence_is_served_in_order_by_one_worker(verbs: list[str]) -> None:
    queue = new_queue(max_waiting=100)
    put_names: dict[str, list[str]] = {}
    served: dict[str, list[str]] = {}
    worker_of: dict[str, str] = {}
    running: list[Job] = []
    for number, verb in enumerate(verbs):
        if verb in ("x", "y", "z"):
            put(queue, verb, f"{verb}{number}")
            put_names.setdefault(verb, []).append(f"{verb}{number}")
        elif verb == "answer":
            for job in running:
                job.push(chunk(b""))
            running.clear()
        else:
            batch = take(queue, verb, share=2)
            sequences = [job.request.id.decode()[0] for job in batch]
            assert len(set(sequences)) == len(sequences)
            assert not set(sequences) & {job.request.id.decode()[0] for job in running}
            for job, sequence in zip(batch, sequences, strict=True):
                assert worker_of.setdefault(sequence, verb) == verb
                served.setdefault(sequence, []).append(job.request.id.decode())
            running += batch
    for sequence, names in served.items():
        assert names == put_names[sequence][: len(names)]
