"""Second chances: who runs again after a death or a failed batch, with whom, and how often."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fakes import (
    Batch,
    Behaviour,
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
    put_job,
    turns,
    wait_until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worker_bench import Bench

from ts.protocol.messages import Prediction
from ts_frontend.core.errors import (
    ErrorKind,
    ModelError,
    NoWorker,
    RequestQuarantined,
    WorkerDied,
)
from ts_frontend.core.job import Command, Job, JobState
from ts_frontend.core.model import WorkerCare
from ts_frontend.workers.pool import WorkerPool

POISON = b"poison"


@pytest.fixture
def script(bench: Bench) -> Script:
    bench.script = Script()
    return bench.script


async def serving(bench: Bench, workers: int = 1, **config: Any) -> WorkerPool:
    config = {"care": WorkerCare(), "batch_size": 8, "max_batch_delay_ms": 1000, **config}
    return await bench.serving(workers, **config)


def ask(pool: WorkerPool, *bodies: bytes) -> list[Job]:
    return [put_job(pool.model.queue, body) for body in bodies]


def dies_of_poison(worker: ScriptedConnection, batch: Batch) -> None:
    if POISON in map(body_of, batch):
        worker.hang_up()
    else:
        echoes(worker, batch)


def fails_on(*bad: bytes) -> Behaviour:
    """The whole batch, if one of these is in it."""

    def behaviour(worker: ScriptedConnection, batch: Batch) -> None:
        if any(body_of(request) in bad for request in batch):
            fails(503, "Prediction failed")(worker, batch)
        else:
            echoes(worker, batch)

    return behaviour


def bodies(script: Script) -> list[list[bytes]]:
    """The batches that were run, by all workers, in their order at each."""
    return [[body_of(request) for request in batch] for batch in script.batches]


# Deaths.


async def test_what_was_on_board_runs_again_one_by_one(bench: Bench, script: Script) -> None:
    pool = await serving(bench, batch_size=3)
    script.then(leaves)
    jobs = ask(pool, b"1", b"2", b"3")
    late = ask(pool, b"late")
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"1", b"2", b"3"]
    assert await answer_of(*late) == b"late"
    # Apart from each other and before what waits.
    assert bodies(script) == [[b"1", b"2", b"3"], [b"1"], [b"2"], [b"3"], [b"late"]]
    assert bench.meters.reruns == [("worker_death", 3)]
    assert bench.meters.quarantines == 0


async def test_a_sibling_takes_over_at_once(bench: Bench, script: Script) -> None:
    bench.times = replace(bench.times, backoff_s=(0, 600))
    pool = await serving(bench, 2, batch_size=1)
    script.then(leaves)
    (job,) = ask(pool, b"1")
    assert await answer_of(job) == b"1"
    assert [len(connection.batches) for connection in script.connections] == [1, 1]


async def test_a_poisonous_request_is_found_and_given_up(
    bench: Bench, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    pool = await serving(bench, 2, batch_size=3)
    script.default = dies_of_poison
    first, poison, last = ask(pool, b"first", POISON, b"last")
    error = await failure_of(poison)
    assert isinstance(error, RequestQuarantined)
    assert (error.kind, error.reason) == (ErrorKind.UNAVAILABLE, "quarantined")
    assert str(error) == (
        "Worker died 2 times while it ran this request (the last time: "
        "the worker closed its connection); it is not run again."
    )
    assert await answer_of(first) == b"first"
    assert await answer_of(last) == b"last"
    assert sum(POISON in batch for batch in bodies(script)) == 2
    assert bench.meters.quarantines == 1
    (record,) = [r for r in caplog.records if "given up" in r.getMessage()]
    assert poison.request.id.decode() in record.getMessage()


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_the_number_of_retries_is_a_setting(bench: Bench, script: Script, limit: int) -> None:
    pool = await serving(bench, batch_size=1, care=WorkerCare(death_retries=limit))
    script.default = dies_of_poison
    (poison,) = ask(pool, POISON)
    assert isinstance(await failure_of(poison), RequestQuarantined)
    assert len(bodies(script)) == limit + 1
    assert poison.deaths == limit + 1


ONCE = [WorkerCare(death_retries=0), WorkerCare(is_idempotent=False)]


@pytest.mark.parametrize("care", ONCE)
async def test_a_handler_that_may_see_a_request_only_once(
    bench: Bench, script: Script, care: WorkerCare
) -> None:
    pool = await serving(bench, batch_size=2, care=care)
    script.then(leaves)
    for error in await asyncio.gather(*map(failure_of, ask(pool, b"1", b"2"))):
        assert (type(error), str(error)) == (WorkerDied, "Worker died.")
        assert error.reason == "worker_disconnected"  # type: ignore[attr-defined]
    assert len(bodies(script)) == 1
    assert bench.meters.reruns == []


async def test_what_a_client_has_seen_a_part_of_is_not_begun_anew(
    bench: Bench, script: Script
) -> None:
    pool = await serving(bench, batch_size=2)

    def breaks(worker: ScriptedConnection, batch: Batch) -> None:
        headers = [(b"ts_stream_next", b"true")]
        worker.reply(Prediction(r.id, b"", 200, b"", headers, b"part") for r in batch)
        worker.hang_up()

    script.then(breaks)
    clients = [RecordingConsumer(job.response) for job in ask(pool, b"1", b"2")]
    await wait_until(lambda: all(client.is_answered for client in clients))
    assert [client.bodies for client in clients] == [[b"part"], [b"part"]]
    assert [type(client.error) for client in clients] == [WorkerDied, WorkerDied]
    assert len(bodies(script)) == 1


async def test_what_took_too_long_is_not_begun_anew(bench: Bench, script: Script) -> None:
    """It would take as long again; TorchServe's clients hear of it after responseTimeout."""
    pool = await serving(bench, batch_size=1, response_timeout_s=0.1)
    script.then(holds)
    (job,) = ask(pool, b"slow")
    assert isinstance(await failure_of(job), WorkerDied)
    assert len(bodies(script)) == 1


async def test_an_answer_that_breaks_the_protocol_is_tried_again_only_by_itself(
    bench: Bench, script: Script
) -> None:
    pool = await serving(bench, batch_size=2)

    def babbles_over(worker: ScriptedConnection, batch: Batch) -> None:
        if POISON in map(body_of, batch):
            worker.say(b"\xff" * 64)
        else:
            echoes(worker, batch)

    script.default = babbles_over
    guilty, other = ask(pool, POISON, b"other")
    assert await answer_of(other) == b"other"
    assert isinstance(await failure_of(guilty), WorkerDied)
    assert sum(POISON in batch for batch in bodies(script)) == 2


async def test_who_left_in_the_meantime_is_not_run_again(bench: Bench, script: Script) -> None:
    bench.times = replace(bench.times, backoff_s=(0, 0.2))
    pool = await serving(bench, batch_size=3)
    script.then(holds)
    before, between, stays = ask(pool, b"before", b"between", b"stays")
    await wait_until(lambda: script.batches)
    before.response.cancel()
    script.connections[0].hang_up()
    await wait_until(lambda: between.state is JobState.WAITING)
    between.response.cancel()
    assert await answer_of(stays) == b"stays"
    assert bodies(script)[1:] == [[b"stays"]]


async def test_a_deadline_that_passes_before_the_second_run_is_told(
    bench: Bench, script: Script
) -> None:
    bench.times = replace(bench.times, backoff_s=(0, 600))
    pool = await serving(bench, batch_size=1)
    script.then(leaves)
    (job,) = ask(pool, b"1")
    await wait_until(lambda: job.deaths == 1 and job.state is JobState.WAITING)
    job.expire()
    assert (await failure_of(job)).kind is ErrorKind.DEADLINE_EXCEEDED


async def test_when_nobody_is_left_they_hear_why(bench: Bench, script: Script) -> None:
    pool = await serving(bench, batch_size=2, max_retry_timeout_s=0, max_batch_delay_ms=0)
    script.then(holds)
    (running,) = ask(pool, b"running")
    waiting = ask(pool, b"waiting")
    await wait_until(lambda: script.batches)
    script.connections[0].hang_up()
    assert isinstance(await failure_of(running), WorkerDied)
    assert isinstance(await failure_of(*waiting), NoWorker)


async def test_a_description_is_asked_for_again_too(bench: Bench, script: Script) -> None:
    pool = await serving(bench)
    script.then(leaves)
    job = put_job(pool.model.queue, b"what are you", command=Command.DESCRIBE)
    assert await answer_of(job) == b"what are you"


async def test_a_batch_cut_by_a_scale_goes_to_a_sibling(bench: Bench, script: Script) -> None:
    """It was the server's wish, so it is no death that counts."""
    pool = await serving(bench, 2, batch_size=1)
    script.then(holds, holds)
    first, second = ask(pool, b"first", b"second")
    await wait_until(lambda: len(script.batches) == 2)
    pool.scale(1, 1, 0)
    script.connections[0].release()
    assert await answer_of(first) == b"first"
    assert await answer_of(second) == b"second"
    assert second.deaths == 0


async def test_no_timer_or_task_is_spent_on_healthy_requests(
    bench: Bench, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await serving(bench, batch_size=1)
    monkeypatch.setattr(pool._reruns, "take", lambda now_s: pytest.fail("it was asked"))
    tasks = asyncio.all_tasks()
    for _ in range(3):
        assert await answer_of(*ask(pool, b"x")) == b"x"
    assert asyncio.all_tasks() == tasks


# Deaths of a worker that runs many requests at once.


async def concurrent(bench: Bench, workers: int = 1) -> WorkerPool:
    return await serving(bench, workers, batch_size=1, async_communication=True)


async def test_one_suspect_at_a_time_beside_the_others_work(bench: Bench, script: Script) -> None:
    pool = await concurrent(bench)
    script.default = holds
    suspects = ask(pool, b"1", b"2", b"3")
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 3)
    connection.hang_up()
    await wait_until(lambda: len(script.connections) == 2 and script.connections[1].batches)
    connection = script.connections[1]
    (fresh,) = ask(pool, b"fresh")
    await wait_until(lambda: len(connection.batches) == 2)
    await turns()
    assert bodies(script)[3:] == [[b"1"], [b"fresh"]]
    for number, job in enumerate(suspects):
        answer(connection, job)
        assert await answer_of(job) == job.request.parts[0].body
        await wait_until(lambda n=number: len(connection.batches) == min(3 + n, 4))
    answer(connection, fresh)
    assert await answer_of(fresh) == b"fresh"


async def test_the_second_death_tells_who_it_was(bench: Bench, script: Script) -> None:
    pool = await concurrent(bench)
    script.default = holds
    innocent, poison = ask(pool, b"innocent", POISON)
    (connection,) = script.connections
    await wait_until(lambda: len(connection.batches) == 2)
    connection.hang_up()
    script.default = dies_of_poison
    fresh: list[Job] = []

    def poison_runs_again() -> bool:
        if len(script.connections) > 1 and poison.state is JobState.RUNNING and not fresh:
            fresh.extend(ask(pool, b"fresh"))
        return bool(fresh)

    await wait_until(poison_runs_again)
    assert isinstance(await failure_of(poison), RequestQuarantined)
    assert await answer_of(innocent) == b"innocent"
    assert await answer_of(*fresh) == b"fresh"
    assert pool.workers[0].restarts == 2


def answer(connection: ScriptedConnection, *jobs: Job) -> None:
    connection.reply(
        Prediction(job.request.id, b"", 200, b"", [], bytes(job.request.parts[0].body))
        for job in jobs
    )


# Failed batches.


async def test_serve_1329_only_the_guilty_request_of_a_batch_fails(
    bench: Bench, script: Script
) -> None:
    pool = await serving(bench, batch_size=4)
    script.default = fails_on(b"bad")
    jobs = ask(pool, b"1", b"2", b"bad", b"4")
    error = await failure_of(jobs.pop(2))
    assert isinstance(error, ModelError)
    assert (error.code, str(error)) == (503, "Prediction failed")
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"1", b"2", b"4"]
    assert bodies(script) == [
        [b"1", b"2", b"bad", b"4"],
        [b"1", b"2"],
        [b"bad", b"4"],
        [b"bad"],
        [b"4"],
    ]
    assert pool.workers[0].restarts == 0


async def test_a_single_request_fails_once(bench: Bench, script: Script) -> None:
    pool = await serving(bench, batch_size=1)
    script.default = fails_on(b"bad")
    (job,) = ask(pool, b"bad")
    assert isinstance(await failure_of(job), ModelError)
    assert len(bodies(script)) == 1


WHOLE = [WorkerCare(is_isolating=False), WorkerCare(is_idempotent=False)]


@pytest.mark.parametrize("care", WHOLE)
async def test_torchserves_way_is_to_fail_the_batch(
    bench: Bench, script: Script, care: WorkerCare
) -> None:
    pool = await serving(bench, batch_size=2, care=care)
    script.default = fails_on(b"bad")
    for error in await asyncio.gather(*map(failure_of, ask(pool, b"bad", b"good"))):
        assert isinstance(error, ModelError)
    assert len(bodies(script)) == 1


async def test_a_batch_that_is_too_large_for_the_memory_is_halved(
    bench: Bench, script: Script
) -> None:
    pool = await serving(bench, batch_size=8)

    def takes_three(worker: ScriptedConnection, batch: Batch) -> None:
        behaviour = echoes if len(batch) <= 3 else fails(507, "Out of resources")
        behaviour(worker, batch)

    script.default = takes_three
    jobs = ask(pool, *(b"%d" % number for number in range(8)))
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"%d" % number for number in range(8)]
    assert sorted(map(len, bodies(script))) == [2, 2, 2, 2, 4, 4, 8]


async def test_who_left_a_failed_batch_is_not_in_its_halves(bench: Bench, script: Script) -> None:
    pool = await serving(bench, batch_size=3)
    script.then(holds)
    script.default = fails_on(b"bad")
    gone, bad, good = ask(pool, b"gone", b"bad", b"good")
    await wait_until(lambda: script.batches)
    gone.response.cancel()
    fails(503, "no")(script.connections[0], script.batches[0])
    assert isinstance(await failure_of(bad), ModelError)
    assert await answer_of(good) == b"good"
    assert bodies(script)[1:] == [[b"bad"], [b"good"]]


async def test_an_error_of_a_concurrent_batch_is_cut_too(bench: Bench, script: Script) -> None:
    pool = await serving(bench, batch_size=2, async_communication=True)
    script.default = fails_on(b"bad")
    bad, good = ask(pool, b"bad", b"good")
    assert isinstance(await failure_of(bad), ModelError)
    assert await answer_of(good) == b"good"


@given(
    size=st.integers(1, 16),
    poison=st.sets(st.integers(0, 15)),
    workers=st.integers(1, 3),
)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_exactly_the_guilty_fail_wherever_they_are(
    tmp_path_factory: pytest.TempPathFactory, size: int, poison: set[int], workers: int
) -> None:
    """Every answer is the request's own."""

    async def run() -> None:
        bench = Bench(tmp_path_factory.mktemp("bench"), tmp_path_factory.mktemp("s"))
        bench.script = Script()
        bench.script.default = fails_on(*(b"%d" % number for number in poison))
        pool = await serving(bench, workers, batch_size=size)
        jobs = ask(pool, *(b"%d" % number for number in range(size)))
        clients = [RecordingConsumer(job.response) for job in jobs]
        await wait_until(lambda: all(client.is_answered for client in clients))
        for number, client in enumerate(clients):
            if number in poison:
                assert isinstance(client.error, ModelError)
            else:
                assert client.bodies == [b"%d" % number]
        await pool.close(0)
        assert len(bench.script.batches) <= 2 * size - 1

    asyncio.run(run())
