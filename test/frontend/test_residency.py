"""Models that their first request loads: one load for all who wait, and room for the next."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock, Script, answer_of, failure_of, holds, put_job, turns, wait_until
from worker_bench import Bench

from ts.protocol.messages import LoadReply
from ts_frontend import residency as residency_module
from ts_frontend.core.errors import InvalidArgument, NoWorker
from ts_frontend.core.model import Model
from ts_frontend.residency import Residency, ResidencyState
from ts_frontend.workers import pool as pool_module
from ts_frontend.workers.pool import WorkerPool

MB = 1 << 20


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="ts-") as sockets:
        bench = Bench(tmp_path, Path(sockets))
        yield bench
        async with asyncio.timeout(20):
            for pool in bench.pools:
                await pool.close(0)
        bench.assert_nothing_is_left()


class Shelf:
    """Pools by name, each of whose workers occupies `size` bytes as long as it lives."""

    def __init__(self, bench: Bench, clock: FakeClock) -> None:
        self.bench = bench
        self.clock = clock
        self.size = 100 * MB
        self.pools: dict[Model, WorkerPool] = {}
        self.residency = Residency(self.pools, look_interval_s=0, memory_bytes_of=self._size_of)

    def _size_of(self, pid: int) -> int:
        return self.size

    def budget(self, amount: int) -> None:
        self.residency = Residency(
            self.pools, amount, look_interval_s=0, memory_bytes_of=self._size_of
        )

    def add(self, workers: int = 1, **config: Any) -> WorkerPool:
        pool = self.bench.pool(is_lazy=True, **config)
        self.pools[pool.model] = pool
        self.residency.add(pool.model, pool, workers, workers)
        return pool

    def state(self, pool: WorkerPool) -> ResidencyState:
        report = self.residency.report(pool.model)
        assert report is not None
        return report.state

    async def use(self, pool: WorkerPool) -> None:
        self.clock.advance(1)
        await answer_of(put_job(pool.model.queue))
        self.residency.check()

    def loaded(self) -> int:
        return sum(bool(pool.workers) for pool in self.pools.values())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    for module in (residency_module, pool_module):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.fixture
async def shelf(bench: Bench, clock: FakeClock) -> AsyncIterator[Shelf]:
    bench.script = Script()
    shelf = Shelf(bench, clock)
    yield shelf
    await shelf.residency.close()


async def test_the_first_request_loads_the_model_and_is_answered(shelf: Shelf) -> None:
    pool = shelf.add(workers=2)
    assert shelf.state(pool) is ResidencyState.UNLOADED
    assert pool.can_serve
    job = put_job(pool.model.queue, b"first")
    assert shelf.state(pool) is ResidencyState.LOADING
    assert await answer_of(job) == b"first"
    await wait_until(lambda: shelf.state(pool) is ResidencyState.LOADED)
    assert len(pool.workers) == 2


async def test_requests_that_come_together_wait_for_one_load(shelf: Shelf) -> None:
    pool = shelf.add()
    jobs = [put_job(pool.model.queue, b"%d" % number) for number in range(9)]
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"%d" % n for n in range(9)]
    assert len(shelf.bench.pids()) == 1
    report = shelf.residency.report(pool.model)
    assert report is not None
    assert report.loads == 1


async def test_an_idle_model_goes_and_comes_back(shelf: Shelf) -> None:
    pool = shelf.add(idle_unload_s=30)
    await shelf.use(pool)
    shelf.clock.advance(29)
    shelf.residency.check()
    assert shelf.state(pool) is ResidencyState.LOADED
    shelf.clock.advance(2)
    shelf.residency.check()
    assert shelf.state(pool) is ResidencyState.UNLOADED
    await wait_until(lambda: not pool.pids)
    assert (pool.min_workers, pool.max_workers) == (1, 1)  # what comes back
    await shelf.use(pool)
    assert shelf.state(pool) is ResidencyState.LOADED


async def test_a_request_that_comes_while_a_model_goes_is_answered(shelf: Shelf) -> None:
    pool = shelf.add(idle_unload_s=30)
    await shelf.use(pool)
    shelf.clock.advance(31)
    shelf.residency.check()
    assert await answer_of(put_job(pool.model.queue, b"again")) == b"again"


async def test_a_model_with_work_stays(shelf: Shelf) -> None:
    pool = shelf.add(idle_unload_s=30)
    shelf.bench.script.then(holds)
    job = put_job(pool.model.queue, b"long")
    await wait_until(lambda: pool.is_busy and pool.workers and pool.workers[0].is_busy)
    await wait_until(lambda: shelf.state(pool) is ResidencyState.LOADED)
    shelf.clock.advance(300)
    shelf.residency.check()
    assert shelf.state(pool) is ResidencyState.LOADED
    shelf.bench.script.connections[0].release()
    assert await answer_of(job) == b"long"


async def test_a_model_that_keeps_sequences_stays(shelf: Shelf) -> None:
    pool = shelf.add(idle_unload_s=30)
    await shelf.use(pool)
    pool.model.config = replace(pool.model.config, sequence_batching=True)
    shelf.clock.advance(300)
    shelf.residency.check()
    assert shelf.state(pool) is ResidencyState.LOADED


async def test_the_least_recently_used_makes_room(shelf: Shelf) -> None:
    shelf.budget(250 * MB)
    a, b, c = (shelf.add() for _ in range(3))
    for pool in (a, b, a, c):
        await shelf.use(pool)
    states = [shelf.state(pool) for pool in (a, b, c)]
    assert states == [ResidencyState.LOADED, ResidencyState.UNLOADED, ResidencyState.LOADED]


async def test_between_two_looks_the_order_of_use_is_known_too(shelf: Shelf) -> None:
    shelf.budget(350 * MB)
    a, b, c, d = (shelf.add() for _ in range(4))
    for pool in (a, b, c, a, d):
        shelf.clock.advance(0.01)
        await answer_of(put_job(pool.model.queue))
    assert [bool(pool.workers) for pool in (a, b, c, d)] == [True, False, True, True]


async def test_the_budget_holds_when_all_are_asked_at_once(shelf: Shelf) -> None:
    shelf.budget(250 * MB)
    pools = [shelf.add() for _ in range(8)]
    await shelf.use(pools[0])
    peak = 0

    async def look() -> None:
        nonlocal peak
        while True:
            peak = max(peak, sum(len(pool.pids) for pool in pools))
            shelf.residency.check()
            await asyncio.sleep(0.001)

    looking = asyncio.create_task(look())
    jobs = [put_job(pool.model.queue, b"x") for pool in pools for _ in range(3)]
    assert set(await asyncio.gather(*map(answer_of, jobs))) == {b"x"}
    looking.cancel()
    assert peak <= 2


async def test_a_model_that_waits_for_room_gets_it_when_another_is_done(shelf: Shelf) -> None:
    shelf.budget(150 * MB)
    a, b = shelf.add(), shelf.add()
    shelf.bench.script.then(holds)
    long = put_job(a.model.queue, b"long")
    await wait_until(lambda: shelf.state(a) is ResidencyState.LOADED)
    short = put_job(b.model.queue, b"short")
    await turns(20)
    shelf.residency.check()
    assert b.workers == []
    shelf.bench.script.connections[0].release()
    assert await answer_of(long) == b"long"
    shelf.residency.check()
    assert await answer_of(short) == b"short"
    assert shelf.state(a) is ResidencyState.UNLOADED


async def test_a_model_larger_than_the_budget_is_loaded_alone(shelf: Shelf) -> None:
    shelf.budget(50 * MB)
    a, b = shelf.add(), shelf.add()
    for pool in (a, b, a):
        await shelf.use(pool)
        assert [other for other in (a, b) if other.workers] == [pool]


async def test_who_gets_no_room_in_time_is_told(shelf: Shelf) -> None:
    shelf.budget(150 * MB)
    a, b = shelf.add(), shelf.add(startup_timeout_s=0.05)
    shelf.bench.script.then(holds)
    long = put_job(a.model.queue)
    await wait_until(lambda: shelf.state(a) is ResidencyState.LOADED)
    error = await failure_of(put_job(b.model.queue))
    assert isinstance(error, NoWorker)
    assert error.reason == "no_memory"
    shelf.bench.script.connections[0].release()
    await answer_of(long)


async def test_nobody_is_loaded_for_who_has_left_already(shelf: Shelf) -> None:
    pool = shelf.add()
    job = put_job(pool.model.queue)
    job.response.cancel()
    await wait_until(lambda: shelf.state(pool) is ResidencyState.UNLOADED)
    assert shelf.bench.pids() == []


async def test_a_load_that_fails_answers_who_waits_and_is_tried_again_later(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_module, "FIRST_PAUSE_S", 0.05)
    pool = shelf.add()
    good, shelf.bench.script.load_reply = (
        shelf.bench.script.load_reply,
        LoadReply(500, "no weights"),
    )
    error = await failure_of(put_job(pool.model.queue))
    assert error.reason == "load_failed"
    assert "no weights" in error.message
    await wait_until(lambda: shelf.state(pool) is ResidencyState.FAILED)
    assert "no weights" in pool.unhealthy_reason
    assert not pool.can_serve
    shelf.bench.script.load_reply = good
    await wait_until(lambda: pool.can_serve)
    await shelf.use(pool)
    assert shelf.state(pool) is ResidencyState.LOADED


async def test_a_load_without_a_free_port_is_tried_again_later(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_module, "FIRST_PAUSE_S", 0.05)
    pool = shelf.add()
    take = pool._ports.take

    def no_port(width: int = 1) -> int:
        raise InvalidArgument("No free worker port from 9000 on; check initial_worker_port.")

    monkeypatch.setattr(pool._ports, "take", no_port)
    await failure_of(put_job(pool.model.queue))
    monkeypatch.setattr(pool._ports, "take", take)
    await wait_until(lambda: pool.can_serve)
    await shelf.use(pool)
    assert shelf.state(pool) is ResidencyState.LOADED


async def test_scaling_settles_a_failed_load(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency_module, "FIRST_PAUSE_S", 0.01)
    script = shelf.bench.script
    good, script.load_reply = script.load_reply, LoadReply(500, "no weights")
    up, down = shelf.add(), shelf.add()
    for pool in (up, down):
        await failure_of(put_job(pool.model.queue))
    script.load_reply = good
    down.scale(0, 0, 0)
    assert await up.wait_loaded(up.scale(1, 1, 0)) is None
    await wait_until(lambda: shelf.state(up) is ResidencyState.LOADED)
    assert up.unhealthy_reason == ""
    late_s = asyncio.get_running_loop().time() + 0.05
    await wait_until(lambda: asyncio.get_running_loop().time() > late_s)
    assert not down.can_serve  # the pause is over, and zero workers were asked for


async def test_scaling_loads_and_unloads_by_hand(shelf: Shelf) -> None:
    pool = shelf.add()
    assert await pool.wait_loaded(pool.scale(2, 2, 0)) is None
    assert shelf.state(pool) is ResidencyState.LOADED
    pool.scale(0, 0, 0)
    assert shelf.state(pool) is ResidencyState.UNLOADED
    assert not pool.can_serve  # as with any model that was scaled to none


async def test_a_model_that_is_unregistered_while_it_loads(shelf: Shelf) -> None:
    pool = shelf.add()
    shelf.bench.script.load_reply = None
    job = put_job(pool.model.queue)
    await wait_until(lambda: pool.workers)
    shelf.residency.forget(pool.model)
    await pool.close(0)
    assert isinstance(await failure_of(job), NoWorker)
    assert shelf.residency.report(pool.model) is None
