"""Who is let in, and what the others are told."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))  # fakes.py, fake_planes.py

from fake_planes import FakePlanes, PlayedModel, holds

from ts_frontend.core.admission import Admission, Load
from ts_frontend.core.deadline import DeadlineHeaders
from ts_frontend.core.errors import (
    DeadlineUnreachable,
    ErrorKind,
    InvalidArgument,
    QueueFull,
    ServerBusy,
    ServingError,
)
from ts_frontend.core.inference import Header, InferenceRequest, Part
from ts_frontend.core.registry import ModelRegistry
from ts_frontend.data_plane import DataPlane


class Bench:
    """A data plane over one played model."""

    def __init__(self, admission: Admission, **config: object) -> None:
        fakes = FakePlanes()
        self.played: PlayedModel = fakes.add("m", **config)
        self.played.does = holds
        self.queue = self.played.model.queue
        registry = ModelRegistry()
        registry.add(self.played.model)
        self.data = DataPlane(registry, admission)

    def stop_taking(self) -> None:
        self.queue.on_put = None
        self.played.has_idle_worker = False

    def learn(self, batch_s: float) -> None:
        self.queue.watch_times()
        assert self.queue.times is not None
        self.queue.times.add(1, batch_s)

    def ask(self, *headers: Header, body: bytes = b"", **times: float) -> None:
        request = InferenceRequest(b"r", list(headers), [Part(b"body", b"", body)])
        self.data.predict("m", None, request, **times)

    def refusal(self, *headers: Header, body: bytes = b"", **times: float) -> ServingError:
        waiting = len(self.queue)
        with pytest.raises(ServingError) as caught:
            self.ask(*headers, body=body, **times)
        assert len(self.queue) == waiting
        return caught.value


ADMISSION = Admission(DeadlineHeaders(["x-request-timeout-ms"]))
TIMEOUT = b"x-request-timeout-ms"


async def test_a_full_queue_says_when_to_come_again() -> None:
    bench = Bench(ADMISSION, job_queue_size=3)
    bench.stop_taking()
    for _ in range(3):
        bench.ask()
    first = bench.refusal()
    assert isinstance(first, QueueFull)
    assert "no worker to serve" in first.message
    assert (first.kind, first.reason) == (ErrorKind.OVERLOADED, "queue_full")
    assert first.retry_after_s == 1.0  # nothing is known
    bench.learn(2.0)
    assert bench.refusal().retry_after_s == 10.0


async def test_the_operator_chooses_whose_fault_it_is() -> None:
    admission = Admission(overload_kind=ErrorKind.THROTTLED, load=Load(max_requests=2))
    bench = Bench(admission, job_queue_size=1)
    bench.stop_taking()
    bench.ask()
    assert bench.refusal().kind is ErrorKind.THROTTLED
    assert bench.played.model.queue.remaining_capacity == 0


async def test_the_least_of_the_deadlines_counts() -> None:
    bench = Bench(ADMISSION, client_timeout_ms=3000)
    now_s = time.monotonic()
    for headers, deadline_s, expected_s in [
        ([], None, 3.0),
        ([(TIMEOUT, b"2000")], None, 2.0),
        ([(TIMEOUT, b"9000")], now_s + 8, 3.0),
        ([(TIMEOUT, b"2000")], now_s + 1, 1.0),
    ]:
        given = {} if deadline_s is None else {"deadline_s": deadline_s}
        bench.ask(*headers, arrived_s=now_s, **given)
        job = bench.played.jobs[-1]
        assert job.deadline_s == pytest.approx(now_s + expected_s)
        job.response.cancel()


async def test_a_deadline_without_a_number_is_the_client_s_mistake() -> None:
    assert isinstance(Bench(ADMISSION).refusal((TIMEOUT, b"soon")), InvalidArgument)


async def test_what_cannot_be_in_time_is_refused_at_once() -> None:
    bench = Bench(ADMISSION)
    bench.stop_taking()
    bench.learn(2.0)
    error = bench.refusal((TIMEOUT, b"3000"))
    assert isinstance(error, DeadlineUnreachable)
    assert (error.kind, error.reason) == (ErrorKind.OVERLOADED, "deadline_unreachable")
    assert error.retry_after_s == 4.0
    bench.ask((TIMEOUT, b"4500"))


async def test_a_request_without_a_deadline_is_never_refused_for_the_wait() -> None:
    bench = Bench(ADMISSION)
    bench.stop_taking()
    bench.learn(1e6)
    bench.ask()
    assert len(bench.queue) == 1


async def test_a_request_that_waits_ends_at_its_deadline() -> None:
    bench = Bench(ADMISSION)
    bench.stop_taking()
    request = InferenceRequest(b"r", [(TIMEOUT, b"10")], [])
    stream = bench.data.predict("m", None, request)
    with pytest.raises(ServingError) as caught:
        await stream.wait_complete()
    assert caught.value.reason == "deadline_exceeded"
    assert len(bench.queue) == 0


async def test_the_whole_server_has_limits() -> None:
    load = Load(max_requests=2, max_body_bytes=10)
    bench = Bench(Admission(load=load))
    bench.ask(body=b"12345678")
    error = bench.refusal(body=b"123")
    assert isinstance(error, ServerBusy)
    assert error.retry_after_s == 1.0
    bench.ask(body=b"1")
    assert bench.refusal().reason == "too_many_requests"
    for job in bench.played.jobs:
        job.response.cancel()
    assert (load.requests, load.body_bytes) == (0, 0)


async def test_a_request_that_the_queue_refuses_is_not_counted() -> None:
    load = Load(max_requests=5)
    bench = Bench(Admission(load=load), job_queue_size=1)
    bench.stop_taking()
    bench.ask()
    assert isinstance(bench.refusal(), QueueFull)
    assert load.requests == 1
