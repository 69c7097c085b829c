"""Rounds: who is in them, with what, and when a place is free again."""

from __future__ import annotations

import asyncio

import pytest
from fakes import (
    RecordingConsumer,
    Script,
    ScriptedConnection,
    answer_of,
    fails,
    failure_of,
    holds,
    leaves,
    put_job,
    wait_until,
)
from worker_bench import Bench

from ts.protocol.messages import Prediction
from ts_frontend.core.errors import ModelError, WorkerDied
from ts_frontend.core.job import Command, Job, JobState
from ts_frontend.workers.pool import WorkerPool


@pytest.fixture
def script(bench: Bench) -> Script:
    bench.script = Script()
    bench.script.default = holds
    return bench.script


async def serving(bench: Bench, batch_size: int = 3) -> WorkerPool:
    return await bench.serving(1, continuous_batching=True, batch_size=batch_size)


def ask(pool: WorkerPool, body: bytes = b"hello", **more: object) -> Job:
    return put_job(pool.model.queue, body, **more)


async def round_of(script: Script, number: int) -> list[tuple[bytes, bool]]:
    """The ids of the `number`-th round (from 1), and whether each came with its inputs."""
    await wait_until(lambda: len(script.batches) >= number)
    return [(request.id, bool(request.parts)) for request in script.batches[number - 1]]


def reply(connection: ScriptedConnection, **is_last: bool) -> None:
    """Answer the last round; who is not named is done."""
    marks = {True: b"false", False: b"true"}
    connection.reply(
        [
            Prediction(
                request.id,
                b"",
                200,
                b"",
                [(b"ts_stream_next", marks[is_last.get(request.id.decode(), True)])],
                b"piece",
            )
            for request in connection.batches[-1]
        ]
    )


async def test_a_request_goes_round_until_it_is_done(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    job = ask(pool)
    client = RecordingConsumer(job.response)
    name = job.request.id
    (connection,) = script.connections
    assert await round_of(script, 1) == [(name, True)]
    reply(connection, **{name.decode(): False})
    assert await round_of(script, 2) == [(name, False)]  # its inputs are with the worker
    reply(connection)
    await wait_until(lambda: client.is_answered)
    assert client.bodies == [b"piece", b"piece"]
    assert pool.has_idle_worker


async def test_places_are_taken_between_rounds(bench: Bench, script: Script) -> None:
    pool = await serving(bench, batch_size=2)
    one, two, three = ask(pool), ask(pool), ask(pool)
    (connection,) = script.connections
    names = [job.request.id for job in (one, two, three)]
    assert await round_of(script, 1) == [(names[0], True)]
    reply(connection, **{names[0].decode(): False})
    assert await round_of(script, 2) == [(names[0], False), (names[1], True)]
    assert len(pool.model.queue) == 1
    reply(connection, **{names[1].decode(): False})
    assert await round_of(script, 3) == [(names[1], False), (names[2], True)]
    reply(connection)
    await wait_until(lambda: pool.has_idle_worker)
    assert {job.state for job in (one, two, three)} == {JobState.FINISHED}


async def test_who_leaves_is_not_in_the_next_round(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    stays = ask(pool)
    (connection,) = script.connections
    await round_of(script, 1)
    leaver = ask(pool)
    reply(connection, **{stays.request.id.decode(): False})
    assert len(await round_of(script, 2)) == 2
    leaver.response.cancel()
    reply(connection, **{job.request.id.decode(): False for job in (stays, leaver)})
    assert await round_of(script, 3) == [(stays.request.id, False)]
    reply(connection)
    await wait_until(lambda: pool.has_idle_worker)


async def test_a_describe_waits_until_it_is_alone(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    job = ask(pool)
    (connection,) = script.connections
    await round_of(script, 1)
    describe = ask(pool, command=Command.DESCRIBE)
    reply(connection, **{job.request.id.decode(): False})
    assert await round_of(script, 2) == [(job.request.id, False)]
    reply(connection)
    assert await round_of(script, 3) == [(describe.request.id, True)]
    reply(connection)
    assert await answer_of(describe) == b"piece"


async def test_a_failed_round_ends_all_that_is_on_board(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    script.then(fails(503, "no"))
    job = ask(pool)
    error = await failure_of(job)
    assert isinstance(error, ModelError)
    assert error.message == "no"
    script.then(lambda connection, batch: reply(connection))
    assert await answer_of(ask(pool)) == b"piece"


async def test_a_death_answers_everybody(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    script.then(
        lambda connection, batch: reply(connection, **{batch[0].id.decode(): False}), leaves
    )
    job = ask(pool)
    client = RecordingConsumer(job.response)
    async with asyncio.timeout(20):
        await wait_until(lambda: client.errors)
    assert isinstance(client.error, WorkerDied)


async def test_answers_of_another_round_end_the_worker(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    script.then(
        lambda connection, batch: connection.reply([Prediction(b"x", b"", 200, b"", [], b"")])
    )
    job = ask(pool)
    script.default = lambda connection, batch: reply(connection)
    client = RecordingConsumer(job.response)
    await wait_until(lambda: client.is_answered and pool.workers[0].restarts == 1)
