"""What is counted of the whole server, and what a deadline has to do with what waits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fakes import RecordingConsumer, chunk, put_job
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.core.admission import Load, check_deadline
from ts_frontend.core.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    NoWorker,
    ServerBusy,
)
from ts_frontend.core.inference import InferenceRequest, Part
from ts_frontend.core.job import Job
from ts_frontend.core.model import Model, ModelConfig, ModelId

NOW_S = 100.0


def request(body_bytes: int = 1) -> InferenceRequest:
    return InferenceRequest(b"r", [], [Part(b"a", b"", b""), Part(b"b", b"", bytes(body_bytes))])


def new_job(load: Load, body_bytes: int = 1) -> Job:
    return load.new_job(request(body_bytes), 0.0, None, None)


def test_above_the_number_of_requests_there_is_no_room() -> None:
    load = Load(max_requests=2)
    jobs = [new_job(load), new_job(load)]
    with pytest.raises(ServerBusy, match="2 requests") as caught:
        new_job(load)
    assert caught.value.reason == "too_many_requests"
    jobs[0].push(chunk(b""))
    new_job(load)


def test_above_the_bytes_there_is_no_room() -> None:
    load = Load(max_body_bytes=10)
    new_job(load, 6)
    with pytest.raises(ServerBusy, match="10 bytes") as caught:
        new_job(load, 5)
    assert caught.value.reason == "too_many_bytes"
    new_job(load, 4)


def test_a_request_above_the_limit_itself_may_come_alone() -> None:
    load = Load(max_body_bytes=10)
    new_job(load, 50).response.cancel()
    assert load.body_bytes == 0


@given(st.lists(st.sampled_from(["new", "answer", "fail", "expire", "cancel"]), max_size=40))
def test_whatever_becomes_of_them_the_count_is_that_of_the_live_ones(verbs: list[str]) -> None:
    load = Load(max_requests=5, max_body_bytes=20)
    live: list[Job] = []
    for number, verb in enumerate(verbs):
        if verb == "new":
            try:
                live.append(new_job(load, number % 7))
            except ServerBusy:
                assert len(live) == 5 or load.body_bytes + number % 7 > 20
        elif live:
            job = live.pop(number % len(live))
            end = {
                "answer": lambda job: (job.push(chunk(b"", is_last=False)), job.push(chunk(b""))),
                "fail": lambda job: job.fail(NoWorker("none")),
                "expire": Job.expire,
                "cancel": lambda job: job.response.cancel(),
            }[verb]
            RecordingConsumer(job.response)
            job.state = type(job.state).RUNNING
            end(job)
            end(job)
        assert load.requests == len(live)
        assert load.body_bytes == sum(len(job.request.parts[1].body) for job in live)


# Deadlines.


def model_with(waiting: int, batch_s: float | None) -> Model:
    model = Model(ModelId("m", "1"), ModelConfig(), path="", handler="")
    if batch_s is not None:
        model.queue.watch_times()
        assert model.queue.times is not None
        model.queue.times.add(1, batch_s)
    for _ in range(waiting):
        put_job(model.queue)
    return model


# Waiting jobs, seconds of a batch, whether a worker is idle, seconds to the deadline.
LET_IN = [
    (0, 1.0, False, 2.3),
    (2, 1.0, False, 4.5),
    (5, None, False, 0.1),  # nothing is known yet
    (5, 9.0, True, 0.1),  # somebody may find out
]
LATE = [(0, 1.0, False, 2.1), (2, 1.0, False, 4.3)]


@pytest.mark.parametrize(("waiting", "batch_s", "has_idle", "left_s"), LET_IN)
def test_let_in(waiting: int, batch_s: float | None, has_idle: bool, left_s: float) -> None:
    workers = SimpleNamespace(can_serve=True, has_idle_worker=has_idle, ready_count=1)
    check_deadline(model_with(waiting, batch_s), workers, NOW_S + left_s, NOW_S)


@pytest.mark.parametrize(("waiting", "batch_s", "has_idle", "left_s"), LATE)
def test_refused(waiting: int, batch_s: float, has_idle: bool, left_s: float) -> None:
    workers = SimpleNamespace(can_serve=True, has_idle_worker=has_idle, ready_count=1)
    with pytest.raises(DeadlineUnreachable, match=f"about {waiting + 2} s now"):
        check_deadline(model_with(waiting, batch_s), workers, NOW_S + left_s, NOW_S)


def test_a_deadline_that_has_passed_is_refused_at_once() -> None:
    workers = SimpleNamespace(can_serve=True, has_idle_worker=True, ready_count=1)
    with pytest.raises(DeadlineExceeded):
        check_deadline(model_with(0, None), workers, NOW_S, NOW_S)
