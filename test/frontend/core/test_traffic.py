"""Who answers while a new version is on trial, and what clients see of it: nothing but answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # fakes.py, fake_planes.py

from fake_planes import FakePlanes, PlayedModel, answers, echoes, fails, holds, streams
from fakes import RecordingConsumer, chunk

from ts_frontend import data_plane
from ts_frontend.core.admission import Admission, Load
from ts_frontend.core.errors import (
    DeadlineExceeded,
    ErrorKind,
    InvalidArgument,
    ModelError,
    NoWorker,
    QueueFull,
    ServerBusy,
    ServingError,
    WorkerDied,
)
from ts_frontend.core.inference import InferenceRequest, Part
from ts_frontend.core.model import WorkerCare
from ts_frontend.core.traffic import MAX_SHADOWS, Traffic, is_version_failure
from ts_frontend.data_plane import DataPlane


class Bench:
    """Version 1 is current, version 2 on trial; each says its number unless the test has it do
    something else.
    """

    def __init__(self, *, sticky_header: bytes = b"", load: Load | None = None, **config) -> None:
        fakes = FakePlanes()
        self.old: PlayedModel = fakes.add("m", "1", answers(b"1"), **config)
        self.new: PlayedModel = fakes.add("m", "2", answers(b"2"), **config)
        self.data = DataPlane(fakes.registry, Admission(load=load))
        self.traffic = Traffic(self.old.model, self.new.model, sticky_header=sticky_header)
        self.traffic.open()

    def ask(self, version: str | None = None, **headers: str) -> RecordingConsumer:
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        request = InferenceRequest(b"r", pairs, [Part(b"body", b"", b"x")])
        self.stream = self.data.predict("m", version, request)
        return RecordingConsumer(self.stream)

    def answer(self, **headers: str) -> bytes:
        return b"".join(self.ask(**headers).bodies)

    @property
    def figures(self) -> tuple[int, int]:
        """Requests and failures of the new version."""
        return self.traffic.candidate_figures.summary()[:2]


# Who gets what.


@pytest.mark.parametrize("percent", [0, 5, 12.5, 50, 100])
async def test_the_share_is_exact(percent: float) -> None:
    bench = Bench()
    bench.traffic.canary_percent = percent
    answered = [bench.answer() for _ in range(200)]
    assert answered.count(b"2") == int(2 * percent)
    assert bench.traffic.current_figures.summary().requests == 200 - int(2 * percent)


async def test_a_named_version_is_never_diverted() -> None:
    bench = Bench()
    bench.traffic.canary_percent = 100
    assert bench.ask("1").bodies == [b"1"]
    bench.traffic.canary_percent = 0
    assert bench.ask("2").bodies == [b"2"]


async def test_a_client_with_the_sticky_header_stays_where_it_is() -> None:
    bench = Bench(sticky_header=b"X-User")
    users = [f"user-{number}" for number in range(200)]
    converted: set[str] = set()
    for percent in (10, 40, 100):
        bench.traffic.canary_percent = percent
        now = {user for user in users if bench.answer(**{"x-user": user}) == b"2"}
        assert now == {user for user in users if bench.answer(**{"X-USER": user}) == b"2"}
        assert converted <= now
        assert percent / 2 < len(now) / 2 < percent * 1.5 or percent == 100
        converted = now
    assert len(converted) == 200


async def test_after_the_close_all_is_as_without_a_trial() -> None:
    bench = Bench()
    bench.traffic.canary_percent = bench.traffic.shadow_percent = 100
    bench.traffic.close()
    assert bench.old.model.traffic is None
    assert bench.answer() == b"1"
    assert not bench.new.jobs


async def test_what_each_gets_is_counted_as_its_own() -> None:
    bench = Bench()
    bench.traffic.canary_percent = 50

    class Count:
        def __init__(self) -> None:
            self.requests = self.latency_us = self.queue_us = self
            self.value = 0.0

    bench.old.model.default_meters = old = Count()
    bench.new.model.meters = new = Count()
    for _ in range(10):
        bench.ask()
    assert (old.value, new.value) == (5, 5)


# What fails.


@pytest.mark.parametrize(
    "error",
    [
        ModelError(503, "Prediction failed"),
        ModelError(413, "Out of resources"),
        WorkerDied(),
        NoWorker.to_predict("m", "2"),
    ],
)
async def test_a_failed_canary_is_answered_by_the_current_version(error: ServingError) -> None:
    bench = Bench()
    bench.traffic.canary_percent = 100
    bench.new.does = fails(error)
    assert bench.ask().bodies == [b"1"]
    assert bench.figures == (1, 1)
    assert bench.traffic.candidate_figures.last_failure == error.message
    assert bench.traffic.moved == 1


async def test_a_status_that_the_handler_chose_counts_the_same() -> None:
    bench = Bench()
    bench.traffic.canary_percent = 100
    bench.new.does = answers(b"broken", status=500)
    assert bench.ask().bodies == [b"1"]
    assert bench.figures == (1, 1)


@pytest.mark.parametrize("status", [400, 404, 499])
async def test_a_client_s_error_is_its_own(status: int) -> None:
    bench = Bench()
    bench.traffic.canary_percent = 100
    bench.new.does = answers(b"you", status=status)
    assert bench.ask().bodies == [b"you"]
    bench.new.does = fails(ModelError(status, "you"))
    assert bench.ask().error.message == "you"
    assert bench.figures[1] == 0
    assert not bench.old.jobs


async def test_a_full_queue_or_no_worker_of_the_new_version_is_no_client_s_business() -> None:
    bench = Bench(job_queue_size=1)
    bench.traffic.canary_percent = 100
    bench.new.model.queue.on_put = None
    bench.ask()
    assert bench.ask().bodies == [b"1"]
    bench.new.can_serve = False
    assert bench.ask().bodies == [b"1"]
    assert bench.figures == (2, 2)


async def test_a_limit_of_the_whole_server_is_not_the_version_s_fault() -> None:
    bench = Bench(load=Load(max_requests=1))
    bench.traffic.canary_percent = 100
    bench.new.does = holds
    bench.ask()
    with pytest.raises(ServerBusy):
        bench.ask()
    assert bench.figures == (0, 0)


async def test_when_both_fail_the_client_hears_of_the_current_one() -> None:
    bench = Bench()
    bench.traffic.canary_percent = 100
    bench.new.does = fails(WorkerDied())
    bench.old.does = fails(ModelError(503, "theirs"))
    assert bench.ask().error.message == "theirs"
    bench.old.can_serve = False
    assert isinstance(bench.ask().error, NoWorker)


async def test_after_the_first_output_nothing_is_moved() -> None:
    bench = Bench()
    bench.traffic.canary_percent = 100

    def breaks_off(job) -> None:
        job.push(chunk(b"half", is_last=False))
        job.fail(WorkerDied())

    bench.new.does = breaks_off
    client = bench.ask()
    assert client.bodies == [b"half"]
    assert isinstance(client.error, WorkerDied)
    assert bench.figures == (1, 1)
    assert not bench.old.jobs


async def test_a_stream_passes_piece_by_piece() -> None:
    bench = Bench()
    bench.traffic.canary_percent = 100
    bench.new.does = streams(b"a", b"b", b"c")
    assert bench.ask().bodies == [b"a", b"b", b"c"]
    assert bench.figures == (1, 0)


async def test_a_handler_that_may_see_a_request_once_is_not_asked_again() -> None:
    bench = Bench(care=WorkerCare(is_idempotent=False))
    bench.traffic.canary_percent = 100
    bench.new.does = fails(WorkerDied())
    assert isinstance(bench.ask().error, WorkerDied)
    bench.new.does = fails(NoWorker.to_predict("m", "2"))  # none had taken it
    assert bench.ask().bodies == [b"1"]


async def test_at_a_rollback_what_hangs_is_moved() -> None:
    bench = Bench()
    bench.traffic.canary_percent = 100
    bench.new.does = holds
    clients = [bench.ask() for _ in range(3)]
    bench.traffic.close()
    bench.traffic.move_all()
    assert [client.bodies for client in clients] == [[b"1"]] * 3
    for job in bench.new.jobs:
        job.push(chunk(b"late"))  # nobody hears it
    assert [client.bodies for client in clients] == [[b"1"]] * 3
    assert not bench.traffic.candidate_figures.under_way


async def test_a_moved_request_keeps_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = came_s = data_plane.monotonic()
    monkeypatch.setattr(data_plane, "monotonic", lambda: now_s)
    bench = Bench(client_timeout_ms=100_000)
    bench.traffic.canary_percent = 100
    bench.new.does = bench.old.does = holds
    bench.ask()
    now_s += 60
    bench.new.jobs[0].fail(WorkerDied())
    assert bench.old.jobs[0].deadline_s == came_s + 100


async def test_a_client_that_leaves_is_gone_everywhere() -> None:
    bench = Bench()
    bench.new.does = bench.old.does = holds
    for percent, played in ((100, bench.new), (0, bench.old)):
        bench.traffic.canary_percent = percent
        bench.ask()
        bench.stream.cancel()
        assert played.jobs[-1].state.name == "CANCELLED"
    assert not bench.traffic.candidate_figures.under_way
    assert not bench.traffic.current_figures.under_way
    assert bench.figures == (0, 0)


async def test_a_missed_deadline_counts_with_its_time_and_is_no_failure() -> None:
    bench = Bench()
    bench.traffic.canary_percent = 100
    bench.new.does = fails(DeadlineExceeded("late"))
    assert isinstance(bench.ask().error, DeadlineExceeded)
    assert bench.figures == (1, 0)


@pytest.mark.parametrize(
    ("error", "is_failure"),
    [
        (ModelError(500, ""), True),
        (ModelError(507, ""), True),
        (ModelError(422, ""), False),
        (WorkerDied(out_of_memory=True), True),
        (QueueFull("full"), True),
        (InvalidArgument(""), False),
        (DeadlineExceeded(""), False),
        (ServerBusy.with_requests(1), False),
        (ServingError("", ErrorKind.CANCELLED), False),
    ],
)
def test_whose_failure_it_is(error: ServingError, is_failure: bool) -> None:
    assert is_version_failure(error) is is_failure


# Copies.


async def test_a_copy_changes_no_answer_and_is_compared() -> None:
    bench = Bench()
    bench.traffic.shadow_percent = 50
    assert [bench.answer() for _ in range(4)] == [b"1"] * 4
    assert len(bench.new.jobs) == 2
    assert bench.figures == (2, 0)
    bench.new.does = fails(WorkerDied())
    assert [bench.answer() for _ in range(4)] == [b"1"] * 4
    assert bench.figures == (4, 2)
    assert bench.traffic.differing == 2


async def test_a_stream_is_compared_once_by_its_first_piece() -> None:
    bench = Bench()
    bench.traffic.shadow_percent = 100

    def breaks_off(job) -> None:
        job.push(chunk(b"half", is_last=False))
        job.fail(WorkerDied())

    bench.old.does = breaks_off
    assert isinstance(bench.ask().error, WorkerDied)
    assert bench.traffic.differing == 0


async def test_both_may_refuse_the_same_request() -> None:
    bench = Bench()
    bench.traffic.shadow_percent = 100
    bench.old.does = bench.new.does = answers(b"no", status=422)
    assert bench.answer() == b"no"
    assert bench.traffic.differing == 0
    bench.new.does = echoes
    bench.answer()
    assert bench.traffic.differing == 1


async def test_copies_do_not_wait_and_keep_nobody_out() -> None:
    bench = Bench(load=Load(max_requests=1))
    bench.traffic.shadow_percent = 100
    bench.new.model.queue.on_put = None
    assert [bench.answer() for _ in range(3)] == [b"1"] * 3
    assert bench.traffic.skipped == 2
    bench.new.can_serve = False
    bench.new.model.queue.fail_all(WorkerDied())
    assert bench.answer() == b"1"
    assert bench.traffic.skipped == 3


async def test_copies_under_way_have_a_limit_and_an_end() -> None:
    bench = Bench()
    bench.traffic.shadow_percent = 100
    bench.new.does = holds
    for _ in range(MAX_SHADOWS + 5):
        bench.ask()
    assert len(bench.new.jobs) == MAX_SHADOWS
    assert bench.traffic.skipped == 5
    bench.traffic.close()
    assert {job.state.name for job in bench.new.jobs} == {"CANCELLED"}
