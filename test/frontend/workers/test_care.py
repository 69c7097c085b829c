"""How workers are looked after: clients that leave, signs of life, and replacement in time."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from typing import Any

import pytest
from fakes import (
    RecordingConsumer,
    Script,
    answer_of,
    failure_of,
    holds,
    put_job,
    turns,
    wait_until,
)
from worker_bench import FIRST_PORT, Bench, is_running

from ts.protocol.controls import CONTROLS_VARIABLE
from ts.protocol.messages import PONG, LoadReply
from ts_frontend.core.errors import InvalidArgument, WorkerDied
from ts_frontend.core.job import Job
from ts_frontend.core.model import ModelConfig, ParallelType, WorkerCare
from ts_frontend.core.worker_state import WorkerState
from ts_frontend.workers import recycling
from ts_frontend.workers.failure import FailureKind
from ts_frontend.workers.pool import WorkerPool
from ts_frontend.workers.process import is_stopped, resident_bytes
from ts_frontend.workers.watch import WorkerWatch
from ts_frontend.workers.worker import Worker


def ask(pool: WorkerPool, body: bytes = b"hello") -> Job:
    return put_job(pool.model.queue, body)


def alone(pool: WorkerPool) -> Worker:
    (worker,) = pool.workers
    return worker


@pytest.fixture
def script(bench: Bench) -> Script:
    """Its workers are ours, and echo."""
    bench.script = Script()
    bench.script.understand_controls()
    return bench.script


KINDS = [{}, {"async_communication": True}]


# Clients that leave.


@pytest.mark.parametrize("kind", KINDS)
async def test_a_worker_hears_of_a_client_that_left(
    bench: Bench, script: Script, kind: dict[str, Any]
) -> None:
    pool = await bench.serving(batch_size=2, max_batch_delay_ms=1000, **kind)
    script.then(holds)
    gone, stays = ask(pool, b"gone"), ask(pool, b"stays")
    (connection,) = script.connections
    await wait_until(lambda: connection.batches)
    gone.response.cancel()
    await wait_until(lambda: connection.cancels == [gone.request.id])
    connection.release()
    assert await answer_of(stays) == b"stays"
    await wait_until(lambda: not alone(pool).is_busy)
    assert alone(pool).restarts == 0


async def test_a_worker_hears_of_a_deadline_that_passed(bench: Bench, script: Script) -> None:
    pool = await bench.serving()
    script.then(holds)
    job = ask(pool)
    (connection,) = script.connections
    await wait_until(lambda: connection.batches)
    job.expire()
    await wait_until(lambda: connection.cancels == [job.request.id])


async def test_a_worker_of_torchserve_hears_nothing(bench: Bench, script: Script) -> None:
    """It would take the command for a fault and end."""
    script.load_reply = LoadReply(200, "loaded model m")
    pool = await bench.serving(care=WorkerCare(cancel_grace_s=600))
    script.then(holds)
    job = ask(pool)
    (connection,) = script.connections
    await wait_until(lambda: connection.batches)
    job.response.cancel()
    pool.check()
    connection.release()
    assert await answer_of(ask(pool)) == b"hello"
    pool.check()
    await turns()
    assert (connection.cancels, connection.pings) == ([], 0)


async def test_an_answered_job_is_not_cancelled(bench: Bench, script: Script) -> None:
    pool = await bench.serving()
    job = ask(pool)
    await answer_of(job)
    job.response.cancel()
    await turns()
    assert script.connections[0].cancels == []


@pytest.mark.parametrize("kind", KINDS)
async def test_who_works_for_nobody_is_replaced_after_the_grace(
    bench: Bench, script: Script, kind: dict[str, Any]
) -> None:
    bench.times = replace(bench.times, backoff_s=(0, 600))
    pool = await bench.serving(care=WorkerCare(cancel_grace_s=0.05), **kind)
    script.then(holds)
    job = ask(pool)
    await wait_until(lambda: script.batches)
    waiting = None if kind else ask(pool, b"waiting")
    job.response.cancel()
    if waiting is not None:
        assert await answer_of(waiting) == b"waiting"
    worker = alone(pool)
    await wait_until(lambda: worker.restarts == 1)
    assert worker.failure is not None
    assert worker.failure.kind is FailureKind.CANCEL_IGNORED
    assert bench.meters.deaths == ["cancel_ignored"]


async def test_who_works_for_nobody_since_a_neighbour_has_his_answer_is_replaced(
    bench: Bench, script: Script
) -> None:
    bench.times = replace(bench.times, backoff_s=(0, 600))
    care = WorkerCare(cancel_grace_s=0.05)
    pool = await bench.serving(care=care, async_communication=True)
    script.default = holds
    gone = ask(pool, b"gone")
    await wait_until(lambda: len(script.batches) == 1)
    stays = ask(pool, b"stays")
    await wait_until(lambda: len(script.batches) == 2)
    gone.response.cancel()
    script.connections[0].release()
    assert await answer_of(stays) == b"stays"
    worker = alone(pool)
    await wait_until(lambda: worker.restarts == 1)
    assert bench.meters.deaths == ["cancel_ignored"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_neighbour_who_waits_keeps_the_worker(
    bench: Bench, script: Script, kind: dict[str, Any]
) -> None:
    pool = await bench.serving(
        batch_size=2, max_batch_delay_ms=1000, care=WorkerCare(cancel_grace_s=0.01), **kind
    )
    script.then(holds)
    gone, stays = ask(pool, b"gone"), ask(pool, b"stays")
    await wait_until(lambda: script.batches)
    loop = asyncio.get_running_loop()
    gone.response.cancel()
    later_s = loop.time() + 0.05
    await wait_until(lambda: loop.time() > later_s)
    script.connections[0].release()
    assert await answer_of(stays) == b"stays"
    assert alone(pool).restarts == 0


async def test_the_grace_of_one_batch_is_not_that_of_the_next(bench: Bench, script: Script) -> None:
    pool = await bench.serving(care=WorkerCare(cancel_grace_s=0.1))
    loop = asyncio.get_running_loop()
    script.default = holds
    (connection,) = script.connections
    for count in range(1, 4):
        job = ask(pool)
        await wait_until(lambda count=count: len(connection.batches) == count)
        job.response.cancel()
        later_s = loop.time() + 0.06
        await wait_until(lambda later_s=later_s: loop.time() > later_s)
        connection.release()
        await wait_until(lambda: not alone(pool).is_busy)
    assert alone(pool).restarts == 0


# Signs of life.


@pytest.mark.parametrize("kind", KINDS)
async def test_an_idle_worker_answers_pings(
    bench: Bench, script: Script, kind: dict[str, Any]
) -> None:
    pool = await bench.serving(**kind)
    (connection,) = script.connections
    for count in range(1, 5):
        pool.check()
        await wait_until(lambda count=count: connection.pings == count)
        assert await answer_of(ask(pool)) == b"hello"  # which follows the pong
    assert alone(pool).restarts == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_vllm_36451_a_worker_that_answers_no_ping_is_replaced(
    bench: Bench, script: Script, kind: dict[str, Any]
) -> None:
    script.has_pongs = False
    pool = await bench.serving(care=WorkerCare(ping_timeout_s=0), **kind)
    worker = alone(pool)
    pid = worker.pid
    pool.check()
    await turns()
    pool.check()
    assert worker.state is WorkerState.READY  # it may have been a pause
    pool.check()
    await wait_until(lambda: worker.restarts == 1)
    assert worker.last_failure.startswith("no answer to a ping for ")
    assert bench.meters.deaths == ["unresponsive"]
    assert not is_running(pid)
    assert await answer_of(ask(pool)) == b"hello"


async def test_a_ping_has_its_time(bench: Bench, script: Script) -> None:
    """A handler's own thread may keep the interpreter for a while."""
    script.has_pongs = False
    pool = await bench.serving()
    for _ in range(5):
        pool.check()
        await turns()
    assert script.connections[0].pings == 1
    assert alone(pool).restarts == 0


async def test_a_late_pong_is_as_good(bench: Bench, script: Script) -> None:
    script.has_pongs = False
    pool = await bench.serving(care=WorkerCare(ping_timeout_s=0))
    (connection,) = script.connections
    for count in range(1, 4):
        pool.check()
        await wait_until(lambda count=count: connection.pings == count)
        pool.check()
        connection.say(PONG)
        await wait_until(lambda: alone(pool)._ping_s is None)
    assert alone(pool).restarts == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_an_idle_worker_proves_that_it_answers(
    bench: Bench, script: Script, kind: dict[str, Any]
) -> None:
    pool = await bench.serving(**kind)
    (connection,) = script.connections
    assert await pool.is_answering(10)
    assert connection.pings == 1
    assert await asyncio.gather(*(pool.is_answering(10) for _ in range(3))) == [True] * 3
    assert await answer_of(ask(pool)) == b"hello"


async def test_a_worker_that_is_silent_answers_nobody(bench: Bench, script: Script) -> None:
    script.has_pongs = False
    pool = await bench.serving()
    (connection,) = script.connections
    assert not await pool.is_answering(0.01)
    assert not await pool.is_answering(0.01)
    assert connection.pings == 1  # the first is still on its way
    waiting = asyncio.create_task(pool.is_answering(10))
    await turns()
    connection.say(PONG)
    assert await waiting


async def test_one_worker_that_answers_is_enough(bench: Bench, script: Script) -> None:
    pool = await bench.serving(2)
    first, second = pool.workers
    script.has_pongs = False
    assert not await first.is_answering(0.01)
    script.has_pongs = True
    assert await second.is_answering(10)
    assert await pool.is_answering(10)


async def test_a_busy_worker_is_not_asked(bench: Bench, script: Script) -> None:
    pool = await bench.serving()
    script.then(holds)
    job = ask(pool)
    (connection,) = script.connections
    await wait_until(lambda: connection.batches)
    assert await pool.is_answering(0.01)
    assert connection.pings == 0
    connection.release()
    assert await answer_of(job) == b"hello"


async def test_a_worker_that_dies_while_it_is_asked_does_not_answer(
    bench: Bench, script: Script
) -> None:
    script.has_pongs = False
    pool = await bench.serving()
    (connection,) = script.connections
    waiting = asyncio.create_task(pool.is_answering(10))
    await wait_until(lambda: connection.pings)
    connection.hang_up()
    assert not await waiting


async def test_a_pong_may_come_while_a_batch_runs(bench: Bench, script: Script) -> None:
    script.has_pongs = False
    pool = await bench.serving()
    (connection,) = script.connections
    pool.check()
    script.then(holds)
    job = ask(pool)
    await wait_until(lambda: connection.batches)
    connection.say(PONG)
    await wait_until(lambda: alone(pool)._ping_s is None)
    connection.release()
    assert await answer_of(job) == b"hello"


async def test_a_busy_worker_is_not_pinged(bench: Bench, script: Script) -> None:
    """It answers between batches, and its reply is due anyway."""
    pool = await bench.serving()
    script.then(holds)
    job = ask(pool)
    for _ in range(5):
        pool.check()
        await turns()
    (connection,) = script.connections
    assert connection.pings == 0
    connection.release()
    await answer_of(job)


async def test_a_pong_that_nobody_asked_for_is_a_fault(bench: Bench, script: Script) -> None:
    pool = await bench.serving()
    script.connections[0].say(PONG)
    await wait_until(lambda: alone(pool).restarts == 1)
    assert alone(pool).last_failure == "a reply that nobody asked for"


@pytest.mark.parametrize("is_busy", [False, True])
async def test_triton_8604_a_stopped_process_is_replaced(bench: Bench, is_busy: bool) -> None:
    """A real process; the request that it had goes to the sibling."""
    pool = await bench.serving(2, care=WorkerCare())
    victim = pool.workers[0]
    pid = victim.pid
    job = ask(pool, b"hold") if is_busy else None
    if is_busy:
        await wait_until(bench.is_held)
    os.kill(pid, signal.SIGSTOP)
    await wait_until(lambda: is_stopped(pid))
    bench.release()
    pool.check()
    assert victim.state is WorkerState.READY
    pool.check()
    if job is not None:
        assert await answer_of(job) == b"done"
    await wait_until(lambda: victim.restarts == 1 and victim.state is WorkerState.READY)
    assert victim.last_failure == "the process was stopped (SIGSTOP)"
    assert not is_running(pid)
    assert pool.workers[1].restarts == 0


async def test_who_does_not_serve_is_not_checked(bench: Bench, script: Script) -> None:
    script.load_reply = None
    pool = bench.pool()
    (worker,) = pool.scale(1, 1, 0)
    await wait_until(lambda: worker.state is WorkerState.LOADING)
    for _ in range(3):
        pool.check()
    assert worker.state is WorkerState.LOADING


async def test_a_pool_is_watched_until_it_closes(bench: Bench, script: Script) -> None:
    pool = await bench.serving()
    watch = WorkerWatch(0.005)
    watched = WorkerPool(
        pool.model,
        pool._launch,
        pool._connect,
        bench.ports,
        bench.parallel_ports,
        bench.devices,
        bench.meters,
        pool._times,
        watch,
    )
    bench.pools.append(watched)
    watched.scale(1, 1, 0)
    await wait_until(lambda: len(script.connections) == 2 and script.connections[1].pings >= 2)
    await watched.close(0)
    assert watch._timer is None


CONTROLLED = [
    (ParallelType.NONE, True),
    (ParallelType.CUSTOM, True),
    (ParallelType.TENSOR, False),  # the other ranks would not hear of it
    (ParallelType.PIPELINE, False),
]


@pytest.mark.parametrize(("parallel_type", "is_offered"), CONTROLLED)
async def test_controls_are_offered_where_one_process_answers(
    bench: Bench, script: Script, parallel_type: ParallelType, is_offered: bool
) -> None:
    pool = bench.pool()
    pool.model.config = ModelConfig(parallel_type=parallel_type, parallel_level=1)
    environment = pool._launch.worker_environment(pool.model, [])
    assert (CONTROLS_VARIABLE in environment) is is_offered


# Replacement in time.


async def recycled(pool: WorkerPool, old: Worker) -> Worker:
    pool.check()
    await wait_until(lambda: old not in pool.workers)
    await wait_until(lambda: old.state is WorkerState.STOPPED)
    return pool.workers[0]


async def test_a_worker_that_took_enough_requests_is_replaced(bench: Bench, script: Script) -> None:
    pool = await bench.serving(care=WorkerCare(max_requests=3))
    old = alone(pool)
    for _ in range(2):
        await answer_of(ask(pool))
    pool.check()
    assert pool._recycler.task is None
    await answer_of(ask(pool))
    new = await recycled(pool, old)
    assert alone(pool) is new
    assert (new.place.port, new.requests) == (FIRST_PORT + 1, 0)
    assert await answer_of(ask(pool)) == b"hello"
    assert bench.meters.deaths == []


async def test_a_worker_that_has_served_long_enough_is_replaced(
    bench: Bench, script: Script
) -> None:
    pool = await bench.serving(care=WorkerCare(max_age_s=0.01))
    old = alone(pool)
    await answer_of(ask(pool))
    await wait_until(lambda: old.age_s > 0.01)
    await recycled(pool, old)


async def test_serve_967_a_worker_that_uses_too_much_memory_is_replaced(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = {"bytes": 99 << 20}
    monkeypatch.setattr(recycling, "resident_bytes", lambda pid: used["bytes"])
    pool = await bench.serving(care=WorkerCare(max_memory_bytes=100 << 20))
    old = alone(pool)
    await answer_of(ask(pool))
    pool.check()
    assert pool._recycler.task is None
    used["bytes"] = 100 << 20
    await recycled(pool, old)
    # A fresh one uses as much: replacing it would help nobody, and never end.
    pool.check()
    assert pool._recycler.task is None


def test_the_memory_of_a_process() -> None:
    """Ours is that of an interpreter; of no process there is none."""
    assert 5 << 20 < resident_bytes(os.getpid()) < 4 << 30
    assert resident_bytes(-1) == 0


async def test_no_worker_is_replaced_without_a_limit(bench: Bench, script: Script) -> None:
    pool = await bench.serving()
    await answer_of(ask(pool))
    pool.check()
    assert pool._recycler.task is None


async def test_one_at_a_time(bench: Bench, script: Script) -> None:
    pool = await bench.serving(2, care=WorkerCare(max_requests=1))
    await asyncio.gather(answer_of(ask(pool)), answer_of(ask(pool)))  # one for each
    first, second = pool.workers
    pool.check()
    await wait_until(lambda: len(pool._beside) == 1)
    pool.check()
    await turns()
    assert len(pool._beside) == 1
    await wait_until(lambda: first not in pool.workers)
    assert pool.workers[1] is second
    await wait_until(lambda: pool._recycler.task is None)
    pool.check()
    await wait_until(lambda: second not in pool.workers)


async def test_the_old_worker_finishes_what_it_runs(bench: Bench, script: Script) -> None:
    pool = await bench.serving(care=WorkerCare(max_requests=1))
    old = alone(pool)
    script.then(holds)
    client = RecordingConsumer(ask(pool).response)
    (connection,) = script.connections
    await wait_until(lambda: connection.batches)
    connection.answer([b"1"], more=True)
    pool.check()
    await wait_until(lambda: old not in pool.workers)
    assert await answer_of(ask(pool, b"next")) == b"next"
    assert old.state is WorkerState.STOPPING
    connection.answer([b"2"], more=False)
    await wait_until(lambda: client.is_answered)
    assert client.bodies == [b"1", b"2"]
    await wait_until(lambda: old.state is WorkerState.STOPPED)


async def test_a_close_does_not_wait_for_who_is_retiring(bench: Bench, script: Script) -> None:
    pool = await bench.serving(care=WorkerCare(max_requests=1))
    old = alone(pool)
    script.then(holds)
    job = ask(pool)
    await wait_until(lambda: script.batches)
    pool.check()
    await wait_until(lambda: old not in pool.workers)
    async with asyncio.timeout(10):
        await pool.close(0.01)
    assert isinstance(await failure_of(job), WorkerDied)
    assert old.state is WorkerState.STOPPED


async def test_a_close_stops_the_replacement_that_loads(bench: Bench, script: Script) -> None:
    pool = await bench.serving(care=WorkerCare(max_requests=1), startup_timeout_s=600)
    await answer_of(ask(pool))
    script.load_reply = None
    pool.check()
    await wait_until(lambda: len(script.connections) == 2)
    async with asyncio.timeout(10):
        await pool.close(600)


async def test_a_replacement_that_cannot_start_leaves_the_old_one(
    bench: Bench, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    pool = await bench.serving(care=WorkerCare(max_requests=1))
    old = alone(pool)
    await answer_of(ask(pool))
    script.load_reply = LoadReply(507, "System out of memory")
    pool.check()
    await wait_until(lambda: pool._recycler.task is None)
    assert "stays: its replacement could not be started" in caplog.text
    assert alone(pool) is old
    pool.check()
    assert pool._recycler.task is None  # not at once again
    assert await answer_of(ask(pool)) == b"hello"
    await wait_until(lambda: len(pool._tasks) == 1)


async def test_no_port_leaves_the_old_one(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await bench.serving(care=WorkerCare(max_requests=1))
    old = alone(pool)
    await answer_of(ask(pool))

    def take(width: int = 1) -> int:
        raise InvalidArgument("no port")

    with monkeypatch.context() as patch:
        patch.setattr(bench.ports, "take", take)
        pool.check()
        await wait_until(lambda: pool._recycler.task is None)
    assert alone(pool) is old


async def test_a_scale_meanwhile_counts(bench: Bench, script: Script) -> None:
    """The one to be replaced is taken out: so is the replacement."""
    pool = await bench.serving(2, care=WorkerCare(max_requests=1))
    await answer_of(ask(pool))
    await answer_of(ask(pool))
    first, second = pool.workers
    first.requests = 0  # the second one is due
    script.load_reply = None
    pool.check()
    await wait_until(lambda: len(script.connections) == 3)
    pool.scale(1, 1, 0)
    script.connections[2].say(b"\x00\x00\x00\xc8\x00\x00\x00\x00\xff\xff\xff\xff")
    await wait_until(lambda: pool._recycler.task is None)
    assert pool.workers == [first]
    await wait_until(lambda: len(pool._tasks) == 1)
    assert second.state is WorkerState.STOPPED


async def test_a_replacement_stays_on_the_same_gpu(bench: Bench, script: Script) -> None:
    pool = await bench.serving(care=WorkerCare(max_requests=1))
    old = alone(pool)
    old.place = replace(old.place, gpu=3, gpus=(3,))
    await answer_of(ask(pool))
    new = await recycled(pool, old)
    assert (new.place.gpu, new.place.gpus) == (3, (3,))
