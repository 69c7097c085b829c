"""A worker that runs many requests at once: each has its own answer, in any order."""

from __future__ import annotations

import asyncio

import pytest
from fakes import (
    RecordingConsumer,
    Script,
    ScriptedConnection,
    answer_of,
    failure_of,
    holds,
    put_job,
    turns,
    wait_until,
)
from worker_bench import Bench

from ts.protocol.messages import Prediction
from ts_frontend.core.errors import ModelError, NoWorker, WorkerDied
from ts_frontend.core.job import Job, JobState
from ts_frontend.core.worker_state import WorkerState
from ts_frontend.workers import concurrent_worker
from ts_frontend.workers.pool import WorkerPool


def ask(pool: WorkerPool, body: bytes = b"hello") -> Job:
    return put_job(pool.model.queue, body)


@pytest.fixture
def script(bench: Bench) -> Script:
    """Its workers answer when they are told to."""
    bench.script = Script()
    bench.script.default = holds
    return bench.script


async def serving(bench: Bench, workers: int = 1, **config: object) -> WorkerPool:
    return await bench.serving(workers, async_communication=True, **config)


def answer(
    connection: ScriptedConnection, *jobs: Job, code: int = 200, more: bool | None = None
) -> None:
    """One reply that names these jobs; each gets its own body back."""
    headers = [] if more is None else [(b"ts_stream_next", b"true" if more else b"false")]
    predictions = [
        Prediction(job.request.id, b"", code, b"", headers, bytes(job.request.parts[0].body))
        for job in jobs
    ]
    connection.reply(predictions, code, "no" if code != 200 else "Prediction success")


async def test_requests_go_out_without_waiting_and_come_back_in_any_order(
    bench: Bench, script: Script
) -> None:
    pool = await serving(bench)
    jobs = [ask(pool, str(number).encode()) for number in range(5)]
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 5)
    assert pool.workers[0].in_flight == 5
    assert pool.workers[0].is_busy
    assert pool.has_idle_worker
    for index in (3, 0, 4, 2, 1):
        answer(connection, jobs[index])
        assert await answer_of(jobs[index]) == str(index).encode()
    assert not pool.workers[0].is_busy


async def test_streams_run_side_by_side(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    jobs = [ask(pool, b"a"), ask(pool, b"b")]
    clients = [RecordingConsumer(job.response) for job in jobs]
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 2)
    for index, more in [(0, True), (1, True), (1, True), (0, False), (1, False)]:
        answer(connection, jobs[index], more=more)
    await wait_until(lambda: all(client.is_answered for client in clients))
    assert [client.bodies for client in clients] == [[b"a"] * 2, [b"b"] * 3]
    assert pool.workers[0].in_flight == 0


async def test_one_reply_may_answer_several(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    jobs = [ask(pool, b"1"), ask(pool, b"2"), ask(pool, b"3")]
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 3)
    answer(connection, jobs[2], jobs[0])
    assert await answer_of(jobs[0]) == b"1"
    assert await answer_of(jobs[2]) == b"3"
    assert jobs[1].state is JobState.RUNNING


async def test_an_error_hits_only_whom_it_names(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    jobs = [ask(pool, b"1"), ask(pool, b"2")]
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 2)
    answer(connection, jobs[0], code=503)
    error = await failure_of(jobs[0])
    assert isinstance(error, ModelError)
    assert (error.code, str(error)) == (503, "no")
    answer(connection, jobs[1])
    assert await answer_of(jobs[1]) == b"2"
    assert pool.workers[0].restarts == 0


async def test_an_answer_to_nobody_is_dropped(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    (connection,) = script.connections
    job, done = ask(pool), ask(pool, b"done")
    await wait_until(lambda: len(connection.batches) == 2)
    answer(connection, done)
    answer(connection, done)
    answer(connection, job)
    assert await answer_of(job) == b"hello"
    assert await answer_of(done) == b"done"
    assert pool.workers[0].restarts == 0


async def test_who_leaves_is_forgotten_with_the_answer(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    job, other = ask(pool), ask(pool)
    client = RecordingConsumer(job.response)
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 2)
    job.response.cancel()
    answer(connection, job)
    answer(connection, other)
    await answer_of(other)
    assert client.chunks == []
    assert pool.workers[0].in_flight == 0


async def test_a_death_answers_everybody_once(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    clients = [RecordingConsumer(ask(pool).response) for _ in range(4)]
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 4)
    connection.hang_up()
    await wait_until(lambda: all(client.is_answered for client in clients))
    assert [type(client.error) for client in clients] == [WorkerDied] * 4
    late = ask(pool, b"late")
    await wait_until(lambda: len(script.connections) == 2 and script.connections[1].batches)
    answer(script.connections[1], late)
    assert await answer_of(late) == b"late"


async def test_a_worker_that_is_lost_at_work_is_sent_nothing(bench: Bench, script: Script) -> None:
    """It does not know yet that it is lost; handing it the job over and over is no way out."""
    pool = await serving(bench)
    running = ask(pool)
    script.connections[0].connection_lost(None)
    job = ask(pool, b"next")
    assert job.state is JobState.WAITING
    assert isinstance(await failure_of(running), WorkerDied)
    await wait_until(lambda: len(script.connections) == 2 and script.connections[1].batches)
    answer(script.connections[1], job)
    assert await answer_of(job) == b"next"


async def test_the_silence_of_the_whole_worker_ends_it(bench: Bench, script: Script) -> None:
    pool = await serving(bench, response_timeout_s=0.2)
    jobs = [ask(pool), ask(pool)]
    for error in await asyncio.gather(*map(failure_of, jobs)):
        assert isinstance(error, WorkerDied)
    await wait_until(lambda: pool.workers[0].restarts == 1)
    assert pool.workers[0].last_failure == "no reply within responseTimeout"


async def test_a_word_to_anybody_breaks_the_silence(bench: Bench, script: Script) -> None:
    pool = await serving(bench, response_timeout_s=0.2)
    loop = asyncio.get_running_loop()
    slow, stream = ask(pool, b"slow"), ask(pool, b"stream")
    client = RecordingConsumer(stream.response)
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 2)
    for number in range(1, 6):
        loop.call_later(0.07 * number, lambda: answer(connection, stream, more=True))
    loop.call_later(0.07 * 6, lambda: answer(connection, slow, stream, more=False))
    assert await answer_of(slow) == b"slow"
    await wait_until(lambda: client.is_answered)
    assert len(client.chunks) == 6
    assert pool.workers[0].restarts == 0


async def test_an_idle_one_owes_nothing(bench: Bench, script: Script) -> None:
    pool = await serving(bench, response_timeout_s=0.05)
    loop = asyncio.get_running_loop()
    job = ask(pool)
    await wait_until(lambda: script.batches)
    answer(script.connections[0], job)
    await answer_of(job)
    later_s = loop.time() + 0.15
    await wait_until(lambda: loop.time() > later_s)
    assert pool.workers[0].restarts == 0


async def test_what_is_above_the_limit_waits_in_the_queue(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrent_worker, "MAX_IN_FLIGHT", 3)
    pool = await serving(bench)
    jobs = [ask(pool, str(number).encode()) for number in range(5)]
    assert pool.workers[0].in_flight == 3
    assert not pool.has_idle_worker
    assert len(pool.model.queue) == 2
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 3)
    answer(connection, jobs[1], jobs[2])
    await wait_until(lambda: len(connection.batches) == 5)
    answer(connection, jobs[0], jobs[3], jobs[4])
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"0", b"1", b"2", b"3", b"4"]
    assert pool.has_idle_worker
    jobs = [ask(pool) for _ in range(4)]
    assert pool.workers[0].in_flight == 3


async def test_several_of_them_share_the_work(bench: Bench, script: Script) -> None:
    pool = await serving(bench, 2)
    for _ in range(6):
        ask(pool)
    assert [worker.in_flight for worker in pool.workers] == [3, 3]


async def test_a_stop_lets_all_finish(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    (worker,) = pool.workers
    jobs = [ask(pool, b"1"), ask(pool, b"2")]
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 2)
    pool.scale(0, 0, 20)
    await turns()
    for job in jobs:
        assert worker.state is WorkerState.STOPPING
        answer(connection, job)
        await answer_of(job)
    await wait_until(lambda: worker.state is WorkerState.STOPPED)


async def test_a_close_answers_everybody(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrent_worker, "MAX_IN_FLIGHT", 2)
    pool = await serving(bench)
    clients = [RecordingConsumer(ask(pool).response) for _ in range(3)]
    await pool.close(0.01)
    assert [type(client.error) for client in clients] == [WorkerDied, WorkerDied, NoWorker]


async def test_its_repr_counts_what_is_on_board(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    ask(pool)
    ask(pool)
    assert repr(pool.workers[0]).endswith("batches=2>")
