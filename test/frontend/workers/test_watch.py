"""One timer for all pools: it looks at each, and is not there when there are none."""

from __future__ import annotations

import asyncio

import pytest
from fakes import wait_until

from ts_frontend.workers.watch import WorkerWatch


class Pool:
    def __init__(self, bug: Exception | None = None) -> None:
        self.checks = 0
        self.bug = bug

    def check(self) -> None:
        self.checks += 1
        if self.bug is not None:
            raise self.bug


async def test_each_is_looked_at_again_and_again() -> None:
    watch = WorkerWatch(0.005)
    pools = [Pool(), Pool()]
    for pool in pools:
        watch.add(pool)
    await wait_until(lambda: all(pool.checks >= 3 for pool in pools))
    for pool in pools:
        watch.discard(pool)


async def test_a_fault_of_one_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    watch = WorkerWatch(0.005)
    bad, good = Pool(RuntimeError("a bug")), Pool()
    watch.add(bad)
    watch.add(good)
    await wait_until(lambda: good.checks >= 2)
    assert "a bug" in caplog.text
    watch.discard(bad)
    watch.discard(good)


async def test_without_pools_or_interval_there_is_no_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timers: list[float] = []
    loop = asyncio.get_running_loop()

    class Timer:
        def cancel(self) -> None:
            timers.pop()

    class Loop:
        def call_later(self, delay_s: float, callback: object) -> Timer:
            timers.append(delay_s)
            return Timer()

    monkeypatch.setattr(asyncio, "get_running_loop", lambda: Loop())
    never, watch = WorkerWatch(0), WorkerWatch(7)
    pool = Pool()
    never.add(pool)
    assert timers == []
    watch.add(pool)
    watch.add(Pool())
    assert timers == [7]
    for watched in list(watch._watched):
        watch.discard(watched)
    assert timers == []
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
