"""Adaptive batching against a fixed delay, in a simulation: real queues and policies, a clock that
is only a number, and workers that are nothing but a latency curve.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
from fakes import new_job

from ts_frontend.core.batch_queue import BatchQueue
from ts_frontend.core.batch_times import BatchTimes
from ts_frontend.core.batching import AdaptiveBatching, BatchPolicy, DynamicBatching, WaitUntil
from ts_frontend.core.errors import QueueFull
from ts_frontend.core.job import Command, Job

Curve = Callable[[int], float]


def straight(fixed_s: float, per_item_s: float) -> Curve:
    return lambda size: fixed_s + per_item_s * size


def steps(size: int) -> float:
    """Like a GPU that works on 16 at a time."""
    return 0.012 * (1 + (size - 1) // 16)


class Outcome(NamedTuple):
    p50_s: float
    p99_s: float
    per_s: float  # answers in a second
    mean_batch: float


def simulate(
    policy: BatchPolicy,
    curve: Curve,
    rate_per_s: float,
    *,
    workers: int = 1,
    seconds: float = 60.0,
    capacity: int = 1000,
    seed: int = 1,
) -> Outcome:
    """Requests come at random, `rate_per_s` of them on average, to `workers` workers.

    The first quarter is for learning and is not counted.
    """
    chance = random.Random(seed)
    queue = BatchQueue(policy, capacity)
    number = itertools.count()
    events: list[tuple[float, int, str, list[Job]]] = []
    latencies: list[float] = []
    batches: list[int] = []
    idle = workers
    now_s = 0.0

    def at(time_s: float, what: str, jobs: list[Job]) -> None:
        heapq.heappush(events, (time_s, next(number), what, jobs))

    at(0.0, "arrival", [])
    while events:
        now_s, _, what, jobs = heapq.heappop(events)
        if what == "arrival":
            with contextlib.suppress(QueueFull):
                queue.put(new_job(arrived_s=now_s))
            if now_s < seconds:
                at(now_s + chance.expovariate(rate_per_s), "arrival", [])
        elif what == "answer":
            idle += 1
            if queue.times is not None:
                queue.times.add(len(jobs), now_s - jobs[0].taken_s)
            if now_s > seconds / 4:
                batches.append(len(jobs))
                latencies += [now_s - job.arrived_s for job in jobs]
        while idle:
            batch = queue.next_batch(now_s)
            if batch is None:
                break
            if isinstance(batch, WaitUntil):
                at(batch.time_s, "delay is over", [])
                break
            idle -= 1
            at(now_s + curve(len(batch)) * chance.uniform(0.9, 1.1), "answer", batch)
    latencies.sort()
    return Outcome(
        latencies[len(latencies) // 2],
        latencies[len(latencies) * 99 // 100],
        len(latencies) / (now_s - seconds / 4),
        sum(batches) / len(batches),
    )


CURVES = [straight(0.010, 0.001), straight(0.002, 0.004), steps]
NAMES = ["mostly fixed", "mostly per item", "steps"]


@pytest.mark.parametrize("curve", CURVES, ids=NAMES)
def test_at_low_load_nobody_waits_for_others(curve: Curve) -> None:
    rate = 0.1 / curve(1)
    fixed = simulate(DynamicBatching(32, 0.1), curve, rate)
    adaptive = simulate(AdaptiveBatching(32, 0.1), curve, rate)
    assert adaptive.p50_s < 1.1 * curve(1)
    assert adaptive.p99_s < 0.5 * fixed.p99_s
    assert adaptive.p50_s < 0.25 * fixed.p50_s


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("curve", CURVES, ids=NAMES)
def test_above_the_capacity_as_much_is_done_as_with_full_batches(
    curve: Curve, workers: int
) -> None:
    rate = 1.5 * workers * 32 / curve(32)
    fixed = simulate(DynamicBatching(32, 0.1), curve, rate, workers=workers, seconds=20)
    adaptive = simulate(AdaptiveBatching(32, 0.05), curve, rate, workers=workers, seconds=20)
    assert adaptive.per_s > 0.97 * fixed.per_s


# Where the target can be met: a curve, a target, and a rate that batches of half the target bear.
FEASIBLE = [
    (straight(0.010, 0.001), 0.1, 300, 1),
    (straight(0.010, 0.001), 0.1, 600, 1),
    (straight(0.002, 0.004), 0.1, 180, 1),
    (steps, 0.06, 700, 1),
    (straight(0.010, 0.001), 0.1, 1500, 3),
]


@pytest.mark.parametrize(("curve", "target_s", "rate", "workers"), FEASIBLE)
def test_the_target_is_kept_where_it_can_be(
    curve: Curve, target_s: float, rate: float, workers: int
) -> None:
    policy = AdaptiveBatching(64, target_s)
    outcome = simulate(policy, curve, rate, workers=workers, seconds=40)
    assert outcome.p99_s < target_s
    assert outcome.per_s == pytest.approx(rate, rel=0.1)


def test_a_model_that_becomes_slower_is_learned_again() -> None:
    policy = AdaptiveBatching(64, 0.1)
    simulate(policy, straight(0.005, 0.0005), 500, seconds=20)
    outcome = simulate(policy, straight(0.010, 0.002), 300, seconds=40)
    assert outcome.p99_s < 0.1


# Decisions, of a curve of 10 ms + 1 ms for each job: what waits, how long the first has, the size.
DECISIONS = [
    (1, 0.0, 1),
    (30, 0.0, 30),  # 40 ms, and the next ones as long
    (64, 0.0, 40),  # 50 ms is half of the target
    (64, 0.04, 40),
    (64, 0.06, 64),  # too late for that: as much as possible is done
    (200, 0.0, 64),  # more than batches of 40 can answer in time
]


@pytest.mark.parametrize(("waiting", "waited_s", "size"), DECISIONS)
def test_decisions(waiting: int, waited_s: float, size: int) -> None:
    times = BatchTimes()
    for number in range(1, 65):
        times.add(number, 0.010 + 0.001 * number)
    jobs = [new_job(arrived_s=100.0) for _ in range(waiting)]
    taken = AdaptiveBatching(64, 0.1, times).decide(jobs, 0.0, 100.0 + waited_s)
    assert taken.size == pytest.approx(size, abs=3)
    assert taken.size <= 64


def test_a_describe_is_alone_and_closes_the_batch_before_it() -> None:
    policy = AdaptiveBatching(8, 0.1)
    jobs = [new_job(), new_job(), new_job(command=Command.DESCRIBE), new_job()]
    assert policy.decide(jobs, 0.0, 0.0).size == 2
    assert policy.decide(jobs[2:], 0.0, 0.0).size == 1
