"""A rollout's way through its steps, and out of them, over played workers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # fakes.py, fake_planes.py

from fake_planes import FakePlanes, PlayedModel, answers, fails, holds
from fakes import RecordingConsumer, chunk, wait_until

from ts_frontend.control_plane import Registration
from ts_frontend.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ModelConflict,
    ModelNotFound,
    ModelVersionNotFound,
    RolloutConflict,
    RolloutNotFound,
    SelfTestFailed,
    ServingError,
    WorkerDied,
)
from ts_frontend.core.inference import InferenceRequest, Part
from ts_frontend.core.model import Model
from ts_frontend.metrics.catalog import MetricCatalog
from ts_frontend.metrics.server_metrics import ServerMetrics
from ts_frontend.rollout import rollout as module
from ts_frontend.rollout.plan import RolloutPlan
from ts_frontend.rollout.rollout import RolloutReport, RolloutState
from ts_frontend.rollout.rollouts import KEPT, Rollouts


class PlayedControl:
    """A control plane whose versions load when the test says so.

    load: set it for the workers to have loaded. load_error: what the load ends with.
    """

    def __init__(self, fakes: FakePlanes) -> None:
        self.registry = fakes.registry
        self.pools = fakes.played
        self.on_unregister: Any = None
        self.on_default_set: Any = None
        self.load = asyncio.Event()
        self.load.set()
        self.load_error: ServingError | None = None
        self.add_error: ServingError | None = None
        self.unregister_error: ServingError | None = None
        self.loaded: list[tuple[str, int, int]] = []
        self.scaled: list[tuple[str, int, int]] = []
        self._fakes = fakes

    async def add_on_trial(self, wanted: Registration) -> Model:
        if self.add_error is not None:
            raise self.add_error
        played = self._fakes.add(wanted.model_name or "", wanted.url, answers(b"new"))
        played.ready_count = played.min_workers = played.max_workers = 0
        played.model.is_on_trial = True
        return played.model

    async def load_on_trial(self, model: Model, low: int, high: int) -> None:
        self.loaded.append((model.id.version, low, high))
        await self.load.wait()
        if self.load_error is not None:
            raise self.load_error
        pool = self.pools[model]
        pool.min_workers = pool.ready_count = low

    async def scale(self, name: str, version: str, low: int, high: int, _: bool) -> None:
        self.scaled.append((version, low, high))

    async def unregister(self, name: str, version: str, *, grace_s: float = 0) -> None:
        model = self.registry.check_removable(name, version)
        self.on_unregister(model)
        if self.unregister_error is not None:
            raise self.unregister_error
        self.registry.remove(model)
        del self.pools[model]

    def set_default(self, name: str, version: str) -> None:
        self.registry.set_default(name, version)
        self.on_default_set(self.registry.resolve(name))


class Bench:
    """Version 1 of `m` is current; a rollout registers version 2 unless it is told another."""

    def __init__(self) -> None:
        self.fakes = FakePlanes()
        self.old: PlayedModel = self.fakes.add("m", "1", answers(b"old"))
        self.control = PlayedControl(self.fakes)
        self.metrics = ServerMetrics(MetricCatalog(), "host")
        control: Any = self.control
        self.rollouts = Rollouts(control, self.metrics)

    @property
    def new(self) -> PlayedModel:
        return self.fakes.played[self.fakes.registry.resolve("m", "2")]

    async def start(self, **plan: Any) -> RolloutReport:
        if "version" not in plan:
            plan.setdefault("url", "2")
        plan = {"canary": (50.0,), "step_s": 0, "min_requests": 0, **plan}
        return await self.rollouts.start("m", RolloutPlan(**plan))

    def ask(self) -> RecordingConsumer:
        request = InferenceRequest(b"r", [], [Part(b"body", b"", b"x")])
        return RecordingConsumer(self.fakes.planes.data.predict("m", None, request))

    @property
    def report(self) -> RolloutReport:
        return self.rollouts.of("m")[0]

    async def reach(self, *states: RolloutState) -> RolloutReport:
        def is_reached() -> bool:
            report = self.report
            return report.state in states and (report.state not in ENDED or bool(report.ended_at))

        await wait_until(is_reached)
        return self.report

    async def end(self) -> RolloutReport:
        return await self.reach(*ENDED)

    @property
    def versions(self) -> list[str]:
        return [model.id.version for model in self.fakes.registry.versions("m")]


LOADING, SHADOW, CANARY = RolloutState.LOADING, RolloutState.SHADOW, RolloutState.CANARY
SWITCHING, UNDOING = RolloutState.SWITCHING, RolloutState.UNDOING
DONE, ROLLED_BACK, ABORTED = RolloutState.DONE, RolloutState.ROLLED_BACK, RolloutState.ABORTED
ENDED = (DONE, ROLLED_BACK, ABORTED)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(module, "LOOK_INTERVAL_S", 0.002)
    monkeypatch.setattr(module, "DRAIN_LOOK_S", 0.002)
    bench = Bench()
    yield bench
    await bench.rollouts.close()


async def test_all_steps_in_their_order(bench: Bench) -> None:
    started = await bench.start(canary=(10, 100), shadow=20, shadow_s=0)
    assert (started.state, started.current_version, started.new_version) == (LOADING, "1", "2")
    report = await bench.end()
    steps = [(step.state, step.percent) for step in report.steps]
    assert steps == [
        (LOADING, 0),
        (SHADOW, 20),
        (CANARY, 10),
        (CANARY, 100),
        (SWITCHING, 100),
    ]
    assert report.state is DONE
    assert bench.versions == ["2"]
    assert bench.ask().bodies == [b"new"]
    assert not bench.fakes.registry.resolve("m").is_on_trial
    assert 'ts_rollouts_total{model_name="m",outcome="done",} 1.0' in bench.metrics.render()


async def test_nothing_goes_to_it_before_it_is_loaded(bench: Bench) -> None:
    bench.control.load.clear()
    bench.old.min_workers, bench.old.max_workers = 2, 3
    await bench.start(step_s=60)
    assert [bench.ask().bodies for _ in range(4)] == [[b"old"]] * 4
    bench.control.load.set()
    await bench.reach(CANARY)
    assert bench.control.loaded == [("2", 2, 3)]  # as many as the current one has
    assert [bench.ask().bodies for _ in range(4)].count([b"new"]) == 2


@pytest.mark.parametrize(
    "error", [SelfTestFailed.of("m", "2", "self-test failed: x"), WorkerDied("no luck")]
)
async def test_what_cannot_be_loaded_is_taken_away(bench: Bench, error: ServingError) -> None:
    bench.control.load_error = error
    await bench.start()
    report = await bench.end()
    assert report.state is ROLLED_BACK
    assert report.reason.startswith("it could not be loaded: ")
    assert error.message.rpartition(": ")[2] in report.reason
    assert bench.versions == ["1"]


async def test_failures_take_it_back_and_clients_see_none(bench: Bench) -> None:
    await bench.start(step_s=60, min_requests=5, old_version="keep")
    await bench.reach(CANARY)
    bench.new.does = fails(WorkerDied())
    clients = [bench.ask() for _ in range(10)]
    assert [client.bodies for client in clients] == [[b"old"]] * 10
    report = await bench.end()
    assert report.state is ROLLED_BACK
    assert "5 of 5 requests failed" in report.reason
    assert report.moved == 5
    assert report.steps[-2].new.failures == 5
    assert bench.old.model.traffic is None
    assert bench.versions == ["1"]


async def test_what_hangs_in_it_is_answered_at_the_rollback(bench: Bench) -> None:
    await bench.start(step_s=60, canary=(100,), max_p99_ms=10, min_requests=2)
    await bench.reach(CANARY)
    bench.new.does = holds
    clients = [bench.ask() for _ in range(3)]
    await bench.end()
    assert [client.bodies for client in clients] == [[b"old"]] * 3


async def test_without_workers_it_is_taken_back(bench: Bench) -> None:
    await bench.start(step_s=60)
    await bench.reach(CANARY)
    bench.new.ready_count = 0
    assert "no worker" in (await bench.end()).reason


async def test_one_that_never_gets_its_requests_ends_too(bench: Bench) -> None:
    await bench.start(min_requests=20, timeout_s=0.01)
    report = await bench.end()
    assert report.state is ROLLED_BACK
    assert "timeout_s" in report.reason
    assert "0 of 20 requests" in report.reason


async def test_a_version_that_was_there_is_put_back_as_it_was(bench: Bench) -> None:
    two = bench.fakes.add("m", "2", answers(b"new"))
    two.min_workers = two.max_workers = 0
    await bench.start(version="2", step_s=60, initial_workers=4)
    await bench.reach(CANARY)
    assert bench.control.loaded == [("2", 4, 4)]
    bench.rollouts.abort("m")
    assert [bench.ask().bodies for _ in range(4)] == [[b"old"]] * 4  # from this very turn on
    report = await bench.end()
    assert (report.state, report.reason) == (ABORTED, "aborted by an operator")
    assert bench.versions == ["1", "2"]
    assert bench.control.scaled == [("2", 0, 0)]


async def test_an_abort_while_it_loads(bench: Bench) -> None:
    bench.control.load.clear()
    await bench.start()
    bench.rollouts.abort("m")
    assert (await bench.end()).state is ABORTED
    assert bench.versions == ["1"]


async def test_the_old_version_finishes_what_it_has(bench: Bench) -> None:
    bench.old.does = holds
    client = bench.ask()
    bench.old.is_busy = True
    await bench.start(canary=())
    await bench.reach(SWITCHING)
    assert bench.ask().bodies == [b"new"]
    assert bench.versions == ["1", "2"]
    with pytest.raises(RolloutConflict, match="SWITCHING"):
        bench.rollouts.abort("m")
    bench.old.jobs[0].push(chunk(b"old"))
    bench.old.is_busy = False
    assert (await bench.end()).state is DONE
    assert client.bodies == [b"old"]
    assert bench.versions == ["2"]


async def test_the_end_of_the_old_version_s_requests_is_not_waited_for_for_ever(bench) -> None:
    bench.old.is_busy = True
    await bench.start(canary=(), drain_s=0.01)
    assert (await bench.end()).state is DONE


async def test_what_cannot_be_unregistered_is_said(bench: Bench) -> None:
    bench.control.unregister_error = DeadlineExceeded("Timed out while cleaning resources: m")
    await bench.start(canary=())
    report = await bench.end()
    assert report.state is DONE
    assert report.reason == "version 1 was not unregistered: Timed out while cleaning resources: m"


async def test_a_fault_of_the_server_ends_it_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(module, "judge", fault)
    await bench.start(step_s=60)
    report = await bench.end()
    assert report.state is ROLLED_BACK
    assert "a fault of the server: ZeroDivisionError" in report.reason
    assert [bench.ask().bodies for _ in range(4)] == [[b"old"]] * 4
    assert not bench.fakes.registry.resolve("m", "2").is_on_trial  # it stays, to be looked at


async def test_a_switch_that_fails_ends_it_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(bench.control, "set_default", fault)
    await bench.start(canary=())
    report = await bench.end()
    assert report.state is ROLLED_BACK
    assert bench.ask().bodies == [b"old"]


# What others do meanwhile.


@pytest.mark.parametrize("version", ["2", "3"])
async def test_a_default_that_is_set_by_hand_ends_it(bench: Bench, version: str) -> None:
    bench.fakes.add("m", "3", answers(b"third"))
    await bench.start(step_s=60)
    await bench.reach(CANARY)
    bench.control.set_default("m", "1")
    assert bench.report.state is CANARY  # nothing has changed
    bench.control.set_default("m", version)
    assert not bench.fakes.registry.resolve("m").is_on_trial  # so a snapshot contains it
    report = await bench.end()
    assert report.state is ABORTED
    assert "made the default by hand" in report.reason
    assert bench.versions == (["1", "3", "2"] if version == "2" else ["1", "3"])


async def test_an_old_version_that_is_gone_at_its_first_turn_ends_it(bench: Bench, caplog) -> None:
    """Its first workers could not be started: the new version has its place then."""
    await bench.start()
    control, old = bench.control, bench.old.model
    heir = control.registry.remove(old)
    del control.pools[old]
    control.on_default_set(heir)
    await wait_until(lambda: bench.report.ended_at)
    assert bench.report.state is RolloutState.ABORTED
    assert control.registry.resolve("m") is heir is bench.new.model
    assert "fault of the server" not in caplog.text


async def test_a_version_that_is_unregistered_by_hand_ends_it(bench: Bench) -> None:
    await bench.start(step_s=60)
    await bench.reach(CANARY)
    await bench.control.unregister("m", "2")
    report = await bench.end()
    assert (report.state, report.reason) == (ABORTED, "version 2 was unregistered")
    assert bench.ask().bodies == [b"old"]


async def test_a_server_that_stops_leaves_it_where_it_is(bench: Bench) -> None:
    await bench.start(step_s=60)
    await bench.reach(CANARY)
    await bench.rollouts.close()
    assert bench.old.model.traffic is None
    assert bench.new.model.is_on_trial


# What is refused.


async def test_only_one_at_a_time(bench: Bench) -> None:
    await bench.start(step_s=60)
    with pytest.raises(RolloutConflict, match="under way"):
        await bench.start(url="3")
    bench.rollouts.abort("m")
    await bench.end()
    await bench.start(url="3")


async def test_what_cannot_begin_leaves_nothing(bench: Bench) -> None:
    with pytest.raises(ModelNotFound):
        await bench.rollouts.start("nobody", RolloutPlan(url="2"))
    with pytest.raises(ModelVersionNotFound):
        await bench.start(version="2")
    with pytest.raises(InvalidArgument, match="is the default version"):
        await bench.start(version="1")
    bench.control.add_error = ModelConflict.of("m", "2")
    with pytest.raises(ModelConflict):
        await bench.start()
    with pytest.raises(RolloutNotFound):
        bench.rollouts.of("m")
    with pytest.raises(RolloutNotFound):
        bench.rollouts.abort("m")
    assert bench.versions == ["1"]


async def test_sequences_are_not_divided(bench: Bench) -> None:
    config = {"sequence_batching": True, "sequence_max_idle_ms": 1000}
    bench.fakes.add("s", "1", **config)
    with pytest.raises(InvalidArgument, match="sequences"):
        await bench.rollouts.start("s", RolloutPlan(url="2"))
    assert [model.id.version for model in bench.fakes.registry.versions("s")] == ["1"]
    await bench.rollouts.start("s", RolloutPlan(url="2", canary=()))
    await wait_until(lambda: bench.rollouts.of("s")[0].state is DONE)


async def test_the_last_ones_are_remembered(bench: Bench) -> None:
    for number in range(2, KEPT + 5):
        await bench.start(url=str(number), canary=())
        assert (await bench.end()).new_version == str(number)
    reports = bench.rollouts.of("m")
    assert len(reports) == KEPT
    assert reports[0].new_version == str(KEPT + 4)
