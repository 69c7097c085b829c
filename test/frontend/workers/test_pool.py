"""Many workers: who gets which job, how many there are, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from fakes import (
    Batch,
    RecordingConsumer,
    Script,
    ScriptedConnection,
    answer_of,
    body_of,
    echoes,
    fails,
    failure_of,
    holds,
    leaves,
    new_job,
    put_job,
    streams,
    turns,
    wait_until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worker_bench import FIRST_PORT, Bench, is_running

from ts.protocol.messages import LoadReply, Prediction
from ts_frontend.core.errors import (
    InvalidArgument,
    NoWorker,
    ServingError,
    WorkerDied,
    WorkerStartFailed,
)
from ts_frontend.core.job import Job, JobState
from ts_frontend.core.model import ParallelType
from ts_frontend.core.worker_state import WorkerState
from ts_frontend.workers import batch_worker
from ts_frontend.workers import pool as pool_module
from ts_frontend.workers.devices import DeviceAllocator
from ts_frontend.workers.environment import PortAllocator
from ts_frontend.workers.pool import WorkerPool


def ask(pool: WorkerPool, body: bytes = b"hello", **arguments: Any) -> Job:
    return put_job(pool.model.queue, body, **arguments)


def ports_of(pool: WorkerPool) -> list[int]:
    return [worker.place.port for worker in pool.workers]


@pytest.fixture
def script(bench: Bench) -> Script:
    bench.script = Script()
    return bench.script


# Work.


async def test_a_request_that_came_before_the_workers_is_answered(
    bench: Bench, script: Script
) -> None:
    pool = bench.pool()
    jobs = [ask(pool, b"1"), ask(pool, b"2")]
    pool.scale(1, 1, 0)
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"1", b"2"]


async def test_the_worker_that_worked_last_is_used_first(bench: Bench, script: Script) -> None:
    """Its caches are warm, and the others may sleep on."""
    pool = await bench.serving(3)
    for _ in range(6):
        await answer_of(ask(pool))
    assert sorted(len(connection.batches) for connection in script.connections) == [0, 0, 6]


async def test_workers_of_many_requests_take_turns(bench: Bench, script: Script) -> None:
    pool = await bench.serving(3, async_communication=True)
    for _ in range(6):
        await answer_of(ask(pool))
    assert [len(connection.batches) for connection in script.connections] == [2, 2, 2]


async def test_busy_workers_get_nothing_more(bench: Bench, script: Script) -> None:
    pool = await bench.serving(2)
    assert pool.has_idle_worker
    script.default = holds
    jobs = [ask(pool, str(number).encode()) for number in range(3)]
    await wait_until(lambda: len(script.batches) == 2)
    await turns()
    assert not pool.has_idle_worker
    assert len(pool.model.queue) == 1
    script.connections[1].release()
    await wait_until(lambda: len(script.batches) == 3)
    assert len(script.connections[1].batches) == 2
    for connection in script.connections:
        connection.release()
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"0", b"1", b"2"]


async def test_a_job_is_on_its_way_in_the_turn_in_which_it_came(
    bench: Bench, script: Script
) -> None:
    pool = await bench.serving()
    assert ask(pool).state is JobState.RUNNING


async def test_a_full_batch_goes_at_once(bench: Bench, script: Script) -> None:
    pool = await bench.serving(batch_size=3, max_batch_delay_ms=600_000)
    jobs = [ask(pool) for _ in range(3)]
    await asyncio.gather(*map(answer_of, jobs))
    assert [len(batch) for batch in script.batches] == [3]


async def test_a_part_of_a_batch_goes_after_the_delay(bench: Bench, script: Script) -> None:
    pool = await bench.serving(batch_size=3, max_batch_delay_ms=30)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    jobs = [ask(pool), ask(pool)]
    assert jobs[0].state is JobState.WAITING
    await asyncio.gather(*map(answer_of, jobs))
    assert loop.time() - began_s >= 0.029
    assert [len(batch) for batch in script.batches] == [2]


async def test_each_batch_has_its_delay(bench: Bench, script: Script) -> None:
    """The timer of a batch that was filled early must not cut the next one short."""
    pool = await bench.serving(2, batch_size=2, max_batch_delay_ms=60)
    loop = asyncio.get_running_loop()
    ask(pool)
    half_s = loop.time() + 0.03
    await wait_until(lambda: loop.time() > half_s)
    ask(pool)  # full: goes early
    late = ask(pool)
    began_s = loop.time()
    await answer_of(late)
    assert loop.time() - began_s >= 0.059
    assert [len(batch) for batch in script.batches] == [2, 1]


async def test_what_waits_goes_together_when_a_worker_is_free(bench: Bench, script: Script) -> None:
    pool = await bench.serving(batch_size=4, max_batch_delay_ms=0)
    script.then(holds)
    jobs = [ask(pool)]
    await wait_until(lambda: script.batches)
    jobs += [ask(pool) for _ in range(6)]
    script.connections[0].release()
    await asyncio.gather(*map(answer_of, jobs))
    assert [len(batch) for batch in script.batches] == [1, 4, 2]


async def test_the_time_in_the_queue_is_measured(bench: Bench, script: Script) -> None:
    class Meter:
        value = 0.0

        def observe(self, value: float) -> None:
            self.value = value

    class Meters:
        requests, latency_us, queue_us, latency_seconds = Meter(), Meter(), Meter(), Meter()

    pool = await bench.serving()
    job = new_job(arrived_s=asyncio.get_running_loop().time() - 5)
    job.meters = meters = Meters()
    pool.model.queue.put(job)
    await answer_of(job)
    assert 5_000_000 <= meters.queue_us.value < 6_000_000
    assert meters.queue_us.value <= meters.latency_us.value
    assert meters.latency_seconds.value == pytest.approx(meters.latency_us.value / 1e6)
    (queue_ms,) = bench.meters.queue_ms
    assert queue_ms == pytest.approx(meters.queue_us.value / 1000)


async def test_a_job_of_a_lost_worker_goes_to_another(bench: Bench, script: Script) -> None:
    """The worker does not know yet that it is lost; it was its turn."""
    pool = await bench.serving(2)
    script.connections[0].connection_lost(None)
    job = ask(pool)
    assert job.state is JobState.RUNNING
    assert await answer_of(job) == b"hello"
    assert [len(connection.batches) for connection in script.connections[:2]] == [0, 1]


async def test_a_job_waits_when_every_worker_was_lost(bench: Bench, script: Script) -> None:
    pool = await bench.serving(2)
    for connection in list(script.connections):
        connection.connection_lost(None)
    jobs = [ask(pool, b"1"), ask(pool, b"2")]
    assert [job.state for job in jobs] == [JobState.WAITING, JobState.WAITING]
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"1", b"2"]


async def test_a_dying_worker_takes_only_its_own_batch(bench: Bench, script: Script) -> None:
    pool = await bench.serving(2)
    script.then(holds, leaves)
    first, second, third = ask(pool, b"1"), ask(pool, b"2"), ask(pool, b"3")
    assert isinstance(await failure_of(second), WorkerDied)
    script.connections[1].release()
    assert await answer_of(first) == b"1"
    assert await answer_of(third) == b"3"


# Work that is sent ahead to a busy worker that is fast.


async def fast(bench: Bench, monkeypatch: pytest.MonkeyPatch, workers: int = 1) -> WorkerPool:
    """A pool whose workers are known to be fast, and are not in the next batches."""
    monkeypatch.setattr(batch_worker, "AHEAD_S", 1.0)
    monkeypatch.setattr(batch_worker, "FAST_S", 0.0)  # not so fast that they are kept awake
    pool = await bench.serving(workers)
    for _ in range(15):
        await asyncio.gather(*(answer_of(ask(pool)) for _ in range(workers)))
    assert bench.script is not None
    bench.script.default = holds
    return pool


def new_batches(connection: ScriptedConnection) -> list[bytes]:
    """What came after the first fifteen."""
    return [body_of(request) for batch in connection.batches[15:] for request in batch]


async def test_a_fast_worker_is_sent_work_ahead(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await fast(bench, monkeypatch)
    (worker,) = pool.workers
    jobs = [ask(pool, str(number).encode()) for number in range(4)]
    (connection,) = script.connections
    await wait_until(lambda: new_batches(connection) == [b"0", b"1", b"2", b"3"])
    assert worker.in_flight == 4
    assert not pool.has_idle_worker
    for number, job in enumerate(jobs):
        echo(connection, 15 + number)
        assert await answer_of(job) == str(number).encode()
        assert pool.has_idle_worker is (number == 3)
    assert worker.in_flight == 0


def echo(connection: ScriptedConnection, index: int) -> None:
    batch = connection.batches[index]
    connection.reply(
        Prediction(request.id, b"", 200, b"", [], body_of(request)) for request in batch
    )


async def test_a_slow_worker_is_sent_nothing_ahead(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await fast(bench, monkeypatch)
    (worker,) = pool.workers
    monkeypatch.setattr(batch_worker, "AHEAD_S", 1e-9)
    jobs = [ask(pool), ask(pool)]
    await turns()
    assert worker.in_flight == 1
    assert len(pool.model.queue) == 1
    script.default = echoes
    script.connections[0].release()
    await asyncio.gather(*map(answer_of, jobs))


async def test_no_worker_is_sent_too_much_ahead(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await fast(bench, monkeypatch)
    monkeypatch.setattr(batch_worker, "MAX_AHEAD", 3)
    for _ in range(5):
        ask(pool)
    assert pool.workers[0].in_flight == 3
    assert len(pool.model.queue) == 2


async def test_the_least_loaded_worker_is_sent_more(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await fast(bench, monkeypatch, workers=2)
    for _ in range(6):
        ask(pool)
    assert [worker.in_flight for worker in pool.workers] == [3, 3]


async def test_a_very_fast_worker_is_sent_more_before_an_idle_one_is_woken(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await fast(bench, monkeypatch, workers=2)
    monkeypatch.setattr(batch_worker, "FAST_S", 1.0)
    for _ in range(3):
        ask(pool)
    assert sorted(worker.in_flight for worker in pool.workers) == [0, 3]


async def test_one_that_is_slow_now_and_then_keeps_nobody_waiting(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await fast(bench, monkeypatch, workers=2)
    monkeypatch.setattr(batch_worker, "FAST_S", 1.0)
    monkeypatch.setattr(batch_worker, "MAX_SMOOTHED_FAST", 0.0)
    for _ in range(2):
        ask(pool)
    assert [worker.in_flight for worker in pool.workers] == [1, 1]


async def test_an_incomplete_batch_is_not_sent_ahead(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would gain nothing, and might have been filled while the worker was busy."""
    monkeypatch.setattr(batch_worker, "AHEAD_S", 1.0)
    pool = await bench.serving(batch_size=2)
    for _ in range(15):
        await answer_of(ask(pool))
    script.default = holds
    for _ in range(4):
        ask(pool)
    assert pool.workers[0].in_flight == 2
    assert len(pool.model.queue) == 1


async def test_a_death_costs_only_the_batch_that_ran(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent ahead was not begun: it goes first when the worker is back."""
    pool = await fast(bench, monkeypatch)
    jobs = [ask(pool, str(number).encode()) for number in range(4)]
    (connection,) = script.connections
    await wait_until(lambda: len(new_batches(connection)) == 4)
    jobs[2].response.cancel()
    script.default = echoes
    connection.hang_up()
    late = ask(pool, b"late")
    assert isinstance(await failure_of(jobs[0]), WorkerDied)
    assert await answer_of(jobs[1]) == b"1"
    assert await answer_of(jobs[3]) == b"3"
    assert await answer_of(late) == b"late"
    bodies = [body_of(request) for batch in script.connections[1].batches for request in batch]
    assert bodies == [b"1", b"3", b"late"]


async def test_a_fast_worker_that_is_lost_is_sent_nothing(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not know yet that it is lost; handing it the job over and over is no way out."""
    pool = await fast(bench, monkeypatch)
    script.default = echoes
    script.connections[0].connection_lost(None)
    job = ask(pool)
    assert job.state is JobState.WAITING
    assert await answer_of(job) == b"hello"


async def test_a_fast_worker_that_is_lost_at_work_is_sent_nothing(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await fast(bench, monkeypatch)
    running = ask(pool)
    script.default = echoes
    script.connections[0].connection_lost(None)
    job = ask(pool, b"next")
    assert isinstance(await failure_of(running), WorkerDied)
    assert await answer_of(job) == b"next"


async def test_a_stop_finishes_what_was_sent_ahead(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await fast(bench, monkeypatch)
    (worker,) = pool.workers
    jobs = [ask(pool, str(number).encode()) for number in range(3)]
    (connection,) = script.connections
    await wait_until(lambda: len(new_batches(connection)) == 3)
    pool.scale(0, 0, 20)
    await turns()
    for number in range(3):
        assert worker.state is WorkerState.STOPPING
        echo(connection, 15 + number)
        assert await answer_of(jobs[number]) == str(number).encode()
    await wait_until(lambda: worker.state is WorkerState.STOPPED)


@pytest.mark.parametrize("others", [0, 1])
async def test_what_was_sent_ahead_outlives_a_stop_without_grace(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Another worker takes it, or it is answered that there is none."""
    pool = await fast(bench, monkeypatch, 1 + others)
    jobs = [ask(pool, str(number).encode()) for number in range(4 + 4 * others)]
    await wait_until(lambda: sum(len(c.batches) for c in script.connections) >= 19 + 19 * others)
    assert [worker.in_flight for worker in pool.workers] == [4] * (1 + others)
    script.default = echoes
    pool.scale(others, others, 0)
    clients = [RecordingConsumer(job.response) for job in jobs]
    if others:
        for index in range(15, 19):
            echo(script.connections[0], index)
    await wait_until(lambda: all(client.is_answered for client in clients))
    errors = [type(client.error) for client in clients if client.errors]
    assert errors == ([WorkerDied] if others else [WorkerDied, NoWorker, NoWorker, NoWorker])


async def steady(bench: Bench, monkeypatch: pytest.MonkeyPatch, workers: int = 1) -> WorkerPool:
    """A pool whose workers are known to take neither very short nor very long."""
    monkeypatch.setattr(pool_module, "NEXT_S", 10.0)
    monkeypatch.setattr(pool_module, "NEXT_ALONE_S", 10.0)
    monkeypatch.setattr(batch_worker, "STEADY", 3)
    pool = await bench.serving(workers)
    for _ in range(3):
        await asyncio.gather(*(answer_of(ask(pool)) for _ in range(workers)))
    assert bench.script is not None
    bench.script.default = holds
    return pool


async def test_a_steady_worker_is_sent_one_batch_ahead(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await steady(bench, monkeypatch)
    jobs = [ask(pool, str(number).encode()) for number in range(4)]
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 5)
    assert (pool.workers[0].in_flight, len(pool.model.queue)) == (2, 2)
    echo(connection, 3)
    assert await answer_of(jobs[0]) == b"0"
    await wait_until(lambda: len(connection.batches) == 6)
    assert (pool.workers[0].in_flight, len(pool.model.queue)) == (2, 1)
    for index in (4, 5, 6):
        await wait_until(lambda wanted=index: len(connection.batches) > wanted)
        echo(connection, index)
    assert [await answer_of(job) for job in jobs[1:]] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("workers", "limit", "ahead"),
    [(1, "NEXT_ALONE_S", 0), (1, "NEXT_S", 1), (2, "NEXT_S", 0), (2, "NEXT_ALONE_S", 2)],
)
async def test_a_worker_is_sent_no_batch_ahead_that_might_wait_too_long(
    bench: Bench,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    limit: str,
    ahead: int,
) -> None:
    """One that has others beside it keeps a batch from them."""
    pool = await steady(bench, monkeypatch, workers)
    monkeypatch.setattr(pool_module, limit, 1e-9)
    for _ in range(3 * workers):
        ask(pool)
    assert sum(worker.in_flight for worker in pool.workers) == workers + ahead


async def test_trust_in_a_worker_wants_as_many_batches_as_it_remembers(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await steady(bench, monkeypatch)
    (worker,) = pool.workers
    ask(pool)
    assert worker.takes_next(10.0)
    new_pool = await bench.serving(1)
    ask(new_pool)
    assert new_pool.workers[0].in_flight == 1
    assert not new_pool.workers[0].takes_next(10.0)


async def test_steady_workers_are_sent_no_batch_that_another_could_run(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await steady(bench, monkeypatch, workers=2)
    for _ in range(3):
        ask(pool)
    assert [worker.in_flight for worker in pool.workers] == [1, 1]
    ask(pool)
    assert sorted(worker.in_flight for worker in pool.workers) == [1, 2]
    assert len(pool.model.queue) == 1


async def test_a_steady_worker_is_sent_nothing_ahead_where_deadlines_matter(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await steady(bench, monkeypatch)
    pool.model.queue.watch_times()
    for _ in range(3):
        ask(pool)
    assert (pool.workers[0].in_flight, len(pool.model.queue)) == (1, 2)


# Size.


async def test_workers_come_and_go_at_the_end(bench: Bench, script: Script) -> None:
    pool = await bench.serving(1)
    more = pool.scale(3, 3, 0)
    assert await pool.wait_loaded(more) is None
    assert ports_of(pool) == [FIRST_PORT, FIRST_PORT + 1, FIRST_PORT + 2]
    assert [worker.place.port for worker in more] == [FIRST_PORT + 1, FIRST_PORT + 2]
    removed = pool.workers[1:]
    assert pool.scale(1, 1, 0) == []
    assert ports_of(pool) == [FIRST_PORT]
    await wait_until(lambda: all(w.state is WorkerState.STOPPED for w in removed))
    assert pool.workers[0].state is WorkerState.READY
    assert await answer_of(ask(pool)) == b"hello"


SCALES = [
    # running, then min and max -> running, started
    (0, (0, 0), 0, 0),
    (0, (2, 4), 2, 2),
    (2, (2, 4), 2, 0),
    (3, (2, 4), 3, 0),
    (3, (1, 2), 2, 0),
    (2, (0, 3), 2, 0),  # a minimum of none is no order to stop
    (2, (0, 0), 0, 0),
    (1, (3, 3), 3, 2),
]


@pytest.mark.parametrize(("running", "limits", "left", "started"), SCALES)
async def test_scale_keeps_to_its_limits(
    bench: Bench, script: Script, running: int, limits: tuple[int, int], left: int, started: int
) -> None:
    pool = await bench.serving(running)
    new = pool.scale(*limits, 0)
    assert len(new) == started
    assert len(pool.workers) == left
    assert (pool.min_workers, pool.max_workers) == limits
    assert pool.can_serve is bool(left)
    assert pool.healthy_count == left
    assert repr(pool) == f"<WorkerPool m_1.0 {left} of {limits[0]}..{limits[1]}>"


async def test_ports_are_given_back_and_used_again(bench: Bench, script: Script) -> None:
    pool = await bench.serving(2)
    (removed,) = pool.workers[1:]
    pool.scale(1, 1, 0)
    await wait_until(lambda: removed.state is WorkerState.STOPPED)
    await turns()
    pool.scale(3, 3, 0)
    assert ports_of(pool) == [FIRST_PORT, FIRST_PORT + 1, FIRST_PORT + 2]


async def test_the_others_take_over_from_a_worker_that_goes(bench: Bench, script: Script) -> None:
    pool = await bench.serving(2)
    script.then(holds, holds)
    jobs = [ask(pool, str(number).encode()) for number in range(4)]
    await wait_until(lambda: len(script.batches) == 2)
    pool.scale(1, 1, 20)
    await turns()
    script.connections[1].release()
    assert await answer_of(jobs.pop(0)) == b"0"
    script.connections[0].release()
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"1", b"2", b"3"]
    assert [len(connection.batches) for connection in script.connections] == [3, 1]


async def test_a_scale_to_none_answers_who_waits(bench: Bench, script: Script) -> None:
    pool = await bench.serving()
    script.then(holds)
    running, waiting = ask(pool), ask(pool)
    await wait_until(lambda: script.batches)
    pool.scale(0, 0, 20)
    error = await failure_of(waiting)
    assert isinstance(error, NoWorker)
    assert str(error) == str(NoWorker.to_predict("m", None))
    assert running.state is JobState.RUNNING
    script.connections[0].release()
    assert await answer_of(running) == b"hello"


async def test_workers_that_have_given_up_are_replaced_by_a_scale(
    bench: Bench, script: Script
) -> None:
    pool = await bench.serving(2, max_retry_timeout_s=0)
    dead, alive = pool.workers
    script.connections[0].hang_up()
    await wait_until(lambda: dead.state is WorkerState.DEAD)
    assert (pool.healthy_count, pool.can_serve) == (1, True)
    assert await answer_of(ask(pool)) == b"hello"
    (new,) = pool.scale(2, 2, 0)
    assert await pool.wait_loaded([new]) is None
    assert pool.workers == [alive, new]
    await wait_until(lambda: dead.state is WorkerState.STOPPED)


async def test_without_a_port_for_all_there_is_none(bench: Bench, script: Script) -> None:
    bench.ports = PortAllocator(65534, is_tcp=False)
    pool = bench.pool()
    with pytest.raises(InvalidArgument, match="No free worker port"):
        pool.scale(3, 3, 0)
    assert pool.workers == []
    assert (pool.min_workers, pool.max_workers) == (0, 0)
    await pool.close(0)
    assert bench.ports.take(2) == 65534
    bench.ports = PortAllocator(FIRST_PORT, is_tcp=False)


async def test_who_waits_for_a_sleeping_model_is_answered_when_nobody_can_be_started(
    bench: Bench, script: Script
) -> None:
    bench.ports = PortAllocator(65536, is_tcp=False)
    pool = bench.pool()
    pool.sleep(lambda: None)
    waiting = ask(pool)
    with pytest.raises(InvalidArgument, match="No free worker port"):
        pool.scale(1, 1, 0)
    assert isinstance(await failure_of(waiting), NoWorker)
    bench.ports = PortAllocator(FIRST_PORT, is_tcp=False)


async def test_a_scale_to_none_answers_who_waits_for_a_sleeping_model(
    bench: Bench, script: Script
) -> None:
    pool = bench.pool()
    pool.sleep(lambda: None)
    waiting = ask(pool)
    pool.scale(0, 0, 0)
    assert isinstance(await failure_of(waiting), NoWorker)


async def test_parallel_workers_take_devices_and_ports_in_a_row(
    bench: Bench, script: Script
) -> None:
    bench.devices = DeviceAllocator(4)
    pool = await bench.serving(
        2, device_type="gpu", parallel_type=ParallelType.CUSTOM, parallel_level=2
    )
    places = [(w.place.port, w.place.width, w.place.gpu, w.place.gpus) for w in pool.workers]
    assert places == [(29500, 2, 0, (0, 1)), (29502, 2, 2, (2, 3))]
    loads = [connection.load for connection in script.connections]
    assert sorted(load.gpu_id for load in loads if load and load.gpu_id is not None) == [0, 2]
    assert bench.ports.take() == FIRST_PORT
    bench.ports.give_back(FIRST_PORT)


async def test_ordinary_workers_share_the_devices(bench: Bench, script: Script) -> None:
    bench.devices = DeviceAllocator(2)
    pool = await bench.serving(3, device_type="gpu")
    assert [worker.place.gpu for worker in pool.workers] == [0, 1, 0]


async def test_a_model_s_turn_over_its_devices_ends_with_the_pool(
    bench: Bench, script: Script
) -> None:
    bench.devices = DeviceAllocator(4)
    for _ in range(2):
        pool = await bench.serving(1, device_type="gpu", device_ids=(3, 2))
        assert [worker.place.gpu for worker in pool.workers] == [3]
        await pool.close(0)


# Waiting for a load.


async def test_the_first_failure_ends_the_wait(bench: Bench) -> None:
    bench.starts("hangs-loading", "refuses-500")
    pool = bench.pool()
    error = await pool.wait_loaded(pool.scale(2, 2, 0))
    assert isinstance(error, WorkerStartFailed)
    assert error.was_refused


async def test_waiting_for_no_worker(bench: Bench, script: Script) -> None:
    pool = bench.pool()
    assert await pool.wait_loaded([]) is None


async def test_workers_that_could_not_start_can_be_taken_out(bench: Bench, script: Script) -> None:
    pool = await bench.serving(1)
    script.load_reply = LoadReply(500, "no")
    started = pool.scale(2, 2, 0)
    assert await pool.wait_loaded(started) is not None
    pool.remove(started)
    pool.remove(started)
    assert ports_of(pool) == [FIRST_PORT]
    script.load_reply = LoadReply(200, "yes")
    assert await answer_of(ask(pool)) == b"hello"


async def test_a_stopped_worker_ends_the_wait_for_it(bench: Bench) -> None:
    bench.starts("hangs-loading")
    pool = bench.pool()
    waiter = asyncio.create_task(pool.wait_loaded(pool.scale(1, 1, 0)))
    await wait_until(lambda: pool.workers[0].state is WorkerState.LOADING)
    pool.scale(0, 0, 0)
    assert isinstance(await waiter, WorkerStartFailed)


# Close.


async def test_a_close_answers_everybody(bench: Bench) -> None:
    bench.times = replace(bench.times, goodbye_s=0.1)
    pool = await bench.serving(2)
    running = [ask(pool, b"hold"), ask(pool, b"hang")]
    waiting = [ask(pool), ask(pool)]
    clients = [RecordingConsumer(job.response) for job in [*running, *waiting]]
    await wait_until(bench.is_held)
    close = asyncio.create_task(pool.close(0.2))
    await wait_until(lambda: clients[3].is_answered)
    assert [client.is_answered for client in clients] == [False, False, True, True]
    bench.release()
    await close
    assert clients[0].bodies == [b"done"]
    assert isinstance(clients[1].error, WorkerDied)
    assert [type(client.error) for client in clients[2:]] == [NoWorker, NoWorker]
    assert pool.workers == []
    assert [pid for pid in bench.pids() if is_running(pid)] == []


async def test_a_close_in_the_middle_of_everything(bench: Bench) -> None:
    """One worker of each kind: serving, loading, starting, between two starts."""
    bench.starts("normal", "hangs-loading", "hangs", "dies")
    bench.times = replace(bench.times, backoff_s=(0, 600), exit_s=0.1, goodbye_s=0.1)
    pool = bench.pool()
    states = [WorkerState.READY, WorkerState.LOADING, WorkerState.STARTING, WorkerState.RECOVERING]
    # One after the other, so that each has its own way to start.
    for count, state in enumerate(states, start=1):
        (worker,) = pool.scale(count, count, 0)
        await wait_until(lambda c=count: len(bench.pids()) == c)
        await wait_until(lambda w=worker, s=state: w.state is s)
    job = ask(pool, b"hang")
    async with asyncio.timeout(10):
        await pool.close(0)
    assert isinstance(await failure_of(job), WorkerDied)


async def test_a_close_without_workers_answers_who_waits(bench: Bench, script: Script) -> None:
    pool = bench.pool()
    job = ask(pool)
    await pool.close(0)
    assert isinstance(await failure_of(job), NoWorker)


async def test_two_closes_are_one(bench: Bench, script: Script) -> None:
    pool = await bench.serving(2)
    await asyncio.gather(pool.close(0), pool.close(0))
    await pool.close(0)
    assert not pool.can_serve


async def test_a_close_forgets_the_timer_of_a_batch(bench: Bench, script: Script) -> None:
    pool = await bench.serving(batch_size=2, max_batch_delay_ms=20)
    job = ask(pool)
    await pool.close(0)
    assert isinstance(await failure_of(job), NoWorker)
    loop = asyncio.get_running_loop()
    later_s = loop.time() + 0.04
    await wait_until(lambda: loop.time() > later_s)
    assert script.batches == []


async def test_a_model_that_was_closed_takes_no_job_to_a_worker(
    bench: Bench, script: Script
) -> None:
    pool = await bench.serving()
    await pool.close(0)
    job = ask(pool)
    assert job.state is JobState.WAITING
    job.response.cancel()


async def test_two_pools_of_real_workers_do_not_meet(bench: Bench) -> None:
    pools = [await bench.serving(2), await bench.serving(1)]
    assert len({port for pool in pools for port in ports_of(pool)}) == 3
    (worker, _) = pools[0].workers
    os.kill(worker.pid, signal.SIGKILL)
    await wait_until(lambda: worker.restarts)
    assert await answer_of(ask(pools[1], b"other")) == b"other"
    assert await answer_of(ask(pools[0], b"same")) == b"same"
    assert len(set(bench.pids())) == len(bench.pids())


# Anything in any order: every job ends once, and nothing is left in the end.

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("expire"), st.integers(0, 30)),
        st.tuples(st.just("scale"), st.integers(0, 3)),
        st.tuples(st.just("script"), st.integers(0, 4)),
        st.tuples(st.just("hang up"), st.integers(0, 3)),
        st.tuples(st.just("release"), st.integers(0, 3)),
        st.tuples(st.just("turns"), st.integers(1, 20)),
        st.tuples(st.just("load"), st.just(0)),
    ),
    min_size=5,
    max_size=25,
)
BEHAVIOURS = [holds, leaves, fails(500, "no"), streams(b"1", b"2", b"3"), holds]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, st.integers(1, 3), st.sampled_from([0, 300]), st.booleans())
def test_every_job_ends_once_whatever_happens(
    steps: list[tuple[str, int]], batch_size: int, window_s: float, is_fast: bool
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="ts-") as folder,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        monkeypatch.setattr(batch_worker, "AHEAD_S", 1.0 if is_fast else 0.0)
        uvloop.run(live_through(steps, batch_size, window_s, is_fast, Path(folder)))


async def live_through(
    steps: list[tuple[str, int]], batch_size: int, window_s: float, is_fast: bool, folder: Path
) -> None:
    sockets = folder / "sockets"
    sockets.mkdir()
    bench = Bench(folder, sockets)
    bench.script = script = Script()
    pool = bench.pool(
        batch_size=batch_size,
        max_batch_delay_ms=0 if is_fast else 5,
        max_retry_timeout_s=window_s,
    )
    await pool.wait_loaded(pool.scale(1, 1, 0))
    if is_fast:
        for _ in range(10):
            await answer_of(ask(pool))
    jobs: list[Job] = []
    clients: list[RecordingConsumer] = []
    for step, number in steps:
        if step == "put":
            for _ in range(number):
                jobs.append(ask(pool, str(len(jobs)).encode()))
                clients.append(RecordingConsumer(jobs[-1].response))
        elif step == "scale":
            pool.scale(number, number, 0.01)
        elif step == "script":
            script.then(BEHAVIOURS[number])
        elif step == "turns":
            await turns(number)
        elif step == "load":
            await wait_until(lambda: all(worker.first_load.done() for worker in pool.workers))
        elif step in ("hang up", "release"):
            open_ones = [c for c in script.connections if not c.is_closed]
            if number < len(open_ones):
                act(open_ones[number], step)
        elif jobs:
            job = jobs[number % len(jobs)]
            job.expire() if step == "expire" else job.response.cancel()
    await pool.close(0.01)
    # The clients themselves refuse anything after an end.
    for number, (job, client) in enumerate(zip(jobs, clients, strict=True)):
        assert job.state >= JobState.FINISHED
        if job.state is JobState.FINISHED:
            assert client.bodies in ([str(number).encode()], [b"1", b"2", b"3"])
        elif job.state is JobState.CANCELLED:
            assert client.errors == []
        else:
            assert isinstance(client.error, ServingError)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    bench.assert_nothing_is_left()


def act(connection: ScriptedConnection, step: str) -> None:
    """A crash, or the answer to a batch that is held."""
    if step == "hang up":
        connection.hang_up()
    elif connection.held is not None:
        connection.release()


def test_the_script_is_a_worker_of_its_word() -> None:
    """The fake itself: what it takes is what was sent."""

    async def scenario() -> list[bytes]:
        bodies: list[bytes] = []

        def remember(worker: ScriptedConnection, batch: Batch) -> None:
            bodies.extend(body_of(request) for request in batch)
            worker.release()

        with tempfile.TemporaryDirectory(prefix="ts-") as folder:
            (sockets := Path(folder) / "sockets").mkdir()
            bench = Bench(Path(folder), sockets)
            bench.script = Script(remember)
            pool = await bench.serving()
            large = bytes(range(256)) * 1000
            assert await answer_of(ask(pool, large)) == large
            await pool.close(0)
        return bodies

    (body,) = uvloop.run(scenario())
    assert len(body) == 256_000
