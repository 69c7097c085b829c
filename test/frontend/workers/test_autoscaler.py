"""The number of workers follows the load: the rule by itself, then a pool that obeys it."""

from __future__ import annotations

import itertools

import pytest
from fakes import FakeClock, Script, answer_of, holds, put_job, turns, wait_until
from worker_bench import Bench

from ts.protocol.messages import LoadReply
from ts_frontend.core.model import Autoscaling
from ts_frontend.workers import autoscaler
from ts_frontend.workers.autoscaler import BUSY_LOOKS, LATE_LOOKS, PAUSE_S, PoolLoad, ScalingRule
from ts_frontend.workers.pool import WorkerPool
from ts_frontend.workers.watch import WorkerWatch

WAIT_S, IDLE_S = 0.1, 10
CONFIG = Autoscaling(WAIT_S, IDLE_S)
IDLE = PoolLoad(workers=2, busy=0, has_idle=True, waited_s=0, low=1, high=8)
LATE = IDLE._replace(busy=2, has_idle=False, waited_s=0.2)
BUSY = IDLE._replace(busy=2, has_idle=False)


@pytest.fixture
def rule() -> ScalingRule:
    return ScalingRule(CONFIG)


def look(rule: ScalingRule, load: PoolLoad, times: int = 1, *, from_s: float = 0) -> list[int]:
    """What the rule wants at so many looks, a second apart."""
    return [rule.decide(load, from_s + second) for second in range(times)]


def test_waiting_requests_call_for_a_worker_at_the_second_look(rule: ScalingRule) -> None:
    assert look(rule, LATE, LATE_LOOKS) == [2] * (LATE_LOOKS - 1) + [3]


def test_one_late_look_by_itself_says_nothing(rule: ScalingRule) -> None:
    wanted = [
        rule.decide(load, s)
        for s, load in enumerate(itertools.islice(itertools.cycle([LATE, IDLE]), 8))
    ]
    assert wanted == [2] * 8


def test_workers_that_are_always_busy_call_for_another(rule: ScalingRule) -> None:
    assert look(rule, BUSY, BUSY_LOOKS) == [2] * (BUSY_LOOKS - 1) + [3]


def test_what_waits_for_its_batch_to_fill_is_not_late(rule: ScalingRule) -> None:
    assert look(rule, LATE._replace(has_idle=True), 6) == [2] * 6


def test_many_workers_grow_by_half_and_to_the_bound(rule: ScalingRule) -> None:
    assert look(rule, LATE._replace(workers=4, busy=4), 2)[-1] == 6
    assert look(rule, LATE._replace(workers=7, busy=7), 2)[-1] == 8


def test_after_growing_the_looks_are_counted_anew(rule: ScalingRule) -> None:
    assert look(rule, LATE, 2)[-1] == 3
    assert look(rule, LATE._replace(workers=3, busy=3), 1) == [3]


def test_what_is_not_needed_goes_after_the_idle_time_by_halves(rule: ScalingRule) -> None:
    load = IDLE._replace(workers=6)
    assert look(rule, load, IDLE_S) == [6] * IDLE_S
    assert rule.decide(load, IDLE_S) == 3  # half of the five that are too many, rounded up
    assert rule.decide(load._replace(workers=3), IDLE_S + 1) == 3


def test_a_moment_of_need_keeps_workers_for_another_idle_time(rule: ScalingRule) -> None:
    load = IDLE._replace(workers=3)
    look(rule, load, 5)
    rule.decide(load._replace(busy=3, has_idle=False), 5)
    assert look(rule, load, 5, from_s=6) == [3] * 5
    assert look(rule, load, IDLE_S + 1, from_s=11)[-1] == 2


@pytest.mark.parametrize(("low", "workers"), [(2, 2), (0, 1), (1, 1)])
def test_never_below_the_lower_bound_nor_to_none(rule: ScalingRule, low: int, workers: int) -> None:
    load = IDLE._replace(low=low, workers=workers)
    assert look(rule, load, 3 * IDLE_S) == [workers] * (3 * IDLE_S)


# A pool.


class HandWatch(WorkerWatch):
    """Looks when the test says so."""

    def __init__(self) -> None:
        super().__init__(0)

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self._fired()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(autoscaler, "monotonic", clock)
    return clock


@pytest.fixture
def watch(bench: Bench) -> HandWatch:
    bench.script = Script()
    bench.autoscaling = HandWatch()
    return bench.autoscaling


async def serving(bench: Bench, low: int, high: int, **config: object) -> WorkerPool:
    pool = bench.pool(autoscaling=CONFIG, **config)
    assert await pool.wait_loaded(pool.scale(low, high, 0)) is None
    return pool


async def all_loaded(pool: WorkerPool) -> None:
    await wait_until(lambda: pool.ready_count == len(pool.workers))


async def test_a_pool_grows_with_what_waits_and_shrinks_when_idle(
    bench: Bench, watch: HandWatch, clock: FakeClock
) -> None:
    pool = await serving(bench, 1, 3)
    bench.script.default = holds
    jobs = [put_job(pool.model.queue, b"%d" % number) for number in range(3)]
    clock.now_s = jobs[0].arrived_s + 5
    watch.look(LATE_LOOKS)
    assert len(pool.workers) == 2
    watch.look(9)  # the new one is still loading: no further one is started
    assert len(pool.workers) == 2
    await all_loaded(pool)
    watch.look(LATE_LOOKS)
    await all_loaded(pool)
    assert len(pool.workers) == 3
    watch.look(9)
    assert len(pool.workers) == 3
    for connection in bench.script.connections:
        if connection.held:
            connection.release()
    bench.script.default = lambda worker, batch: worker.answer([b"late" for _ in batch])
    for job in jobs:
        await answer_of(job)
    for _ in range(3):
        clock.advance(IDLE_S + 1)
        watch.look(2)
        clock.advance(IDLE_S + 1)
        watch.look()
    assert len(pool.workers) == 1
    assert await answer_of(put_job(pool.model.queue)) == b"late"


async def test_equal_bounds_leave_a_pool_alone(
    bench: Bench, watch: HandWatch, clock: FakeClock
) -> None:
    pool = await serving(bench, 1, 1)
    bench.script.default = holds
    job = put_job(pool.model.queue)
    put_job(pool.model.queue)
    clock.now_s = job.arrived_s + 5
    watch.look(20)
    assert len(pool.workers) == 1


async def test_a_worker_that_cannot_load_is_taken_out_and_no_other_tried_for_a_while(
    bench: Bench, watch: HandWatch, clock: FakeClock
) -> None:
    pool = await serving(bench, 1, 4)
    bench.script.default = holds
    bench.script.load_reply = LoadReply(500, "no")
    jobs = [put_job(pool.model.queue) for _ in range(2)]
    clock.now_s = jobs[0].arrived_s + 5
    watch.look(LATE_LOOKS)
    (added,) = pool.workers[1:]
    await wait_until(added.first_load.done)
    watch.look(9)
    assert len(pool.workers) == 1
    assert pool.start_failure == ""  # the pool serves: that is no reason to call it unhealthy
    clock.advance(PAUSE_S + 1)
    watch.look(LATE_LOOKS)
    assert len(pool.workers) == 2


async def test_a_closed_pool_is_not_looked_at(
    bench: Bench, watch: HandWatch, clock: FakeClock
) -> None:
    pool = await serving(bench, 1, 2)
    await pool.close(0)
    await turns()
    watch.look(9)
    assert pool.workers == []
