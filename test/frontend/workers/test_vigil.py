"""When the event loop stays awake for an answer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from fakes import Script, answer_of, holds, put_job, wait_until
from worker_bench import Bench

from ts.protocol.wakefulness import ProcessorLoad
from ts_frontend.workers import vigil as module
from ts_frontend.workers.vigil import Vigil
from ts_frontend.workers.worker import Worker

LONG_S = 60.0


class CountingSelector(selectors.DefaultSelector):
    """Counts how often its loop only looked, and how often it went to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.sleeps = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0:
            self.looks += 1
        else:
            self.sleeps += 1
        return super().select(timeout)


class BusyWorker:
    """A worker with one batch on board."""

    def __init__(self, batch_s: float = 1e-6) -> None:
        self.batch_s = batch_s
        self.in_flight = 1


class FullMachine:
    def find_free(self) -> bool:
        return False


def watch(vigil: Vigil, worker: BusyWorker, meanwhile: Callable[[], None]) -> CountingSelector:
    """What the loop did while `vigil` was kept, or not, and after 20 ms `meanwhile` happened."""
    selector = CountingSelector()

    async def keep() -> None:
        done = asyncio.Event()

        def act() -> None:
            meanwhile()
            done.set()

        vigil.keep(cast(Worker, worker))
        asyncio.get_running_loop().call_later(0.02, act)
        await done.wait()
        selector.looks, looked = 0, selector.looks
        selector.sleeps, slept = 0, selector.sleeps
        await asyncio.sleep(0.02)
        assert selector.sleeps, "it stays awake with nothing to wait for"
        selector.looks, selector.sleeps = looked, slept

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(keep())
    return selector


def test_stays_awake_until_the_answer_is_there() -> None:
    worker = BusyWorker()

    def answer() -> None:
        worker.in_flight = 0

    selector = watch(Vigil(LONG_S, None), worker, answer)
    assert selector.looks > 2
    assert not selector.sleeps


def test_ends_when_there_is_more_to_do() -> None:
    worker = BusyWorker()

    def send_another() -> None:
        worker.in_flight = 2

    assert not watch(Vigil(LONG_S, None), worker, send_another).sleeps


def test_ends_when_the_answer_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(module, "monotonic", lambda: now_s)

    def let_time_pass() -> None:
        nonlocal now_s
        now_s += LONG_S

    assert not watch(Vigil(LONG_S, None), BusyWorker(), let_time_pass).sleeps


@pytest.mark.parametrize(
    ("worker", "load"),
    [(BusyWorker(batch_s=LONG_S), None), (BusyWorker(), cast(ProcessorLoad, FullMachine()))],
    ids=["slow worker", "full machine"],
)
def test_sleeps_where_it_does_not_pay(worker: BusyWorker, load: ProcessorLoad | None) -> None:
    assert watch(Vigil(LONG_S, load), worker, lambda: None).sleeps


class NotedVigil(Vigil):
    def __init__(self) -> None:
        super().__init__(LONG_S, None)
        self.kept_for: list[Worker] = []

    def keep(self, worker: Worker) -> None:
        self.kept_for.append(worker)
        super().keep(worker)


async def test_a_pool_keeps_it_for_a_worker_that_was_idle(bench: Bench) -> None:
    bench.vigil = vigil = NotedVigil()
    bench.script = script = Script(holds, holds)
    pool = await bench.serving(2)
    jobs = [put_job(pool.model.queue), put_job(pool.model.queue)]
    await wait_until(lambda: len(script.batches) == 2)
    assert set(vigil.kept_for) == set(pool.workers)
    for connection in script.connections:
        connection.release()
    for job in jobs:
        await answer_of(job)


def test_there_is_none_where_the_setting_is_0_or_the_load_cannot_be_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Vigil.of_this_machine(0.0) is None
    monkeypatch.setattr("ts.protocol.wakefulness.LOAD_FILE", str(tmp_path / "none"))
    assert Vigil.of_this_machine(LONG_S) is None
