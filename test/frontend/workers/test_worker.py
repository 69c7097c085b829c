"""The life of one worker, asked of a pool of one: start, load, serve, die, come back, end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    Batch,
    RecordingConsumer,
    Script,
    ScriptedConnection,
    answer_of,
    answers_for,
    answers_with_id,
    fails,
    failure_of,
    holds,
    leaves,
    put_job,
    says,
    turns,
    wait_until,
)
from worker_bench import FIRST_PORT, Bench, is_running

from ts.protocol.messages import LoadModel, Prediction
from ts_frontend.core.errors import (
    ErrorKind,
    ModelError,
    NoWorker,
    ServingError,
    WorkerDied,
    WorkerStartFailed,
)
from ts_frontend.core.job import Command, Job, JobState
from ts_frontend.core.worker_state import WorkerState
from ts_frontend.workers.pool import WorkerPool
from ts_frontend.workers.session import BACKOFF_SECONDS, WorkerTimes
from ts_frontend.workers.worker import Worker

FRONTEND_LOG = "ts_frontend.workers.worker"


def ask(pool: WorkerPool, body: bytes = b"hello", **arguments: Any) -> Job:
    return put_job(pool.model.queue, body, **arguments)


async def start_failure(pool: WorkerPool) -> WorkerStartFailed:
    """Why the first worker could not load the model."""
    error = await pool.wait_loaded(pool.scale(1, 1, 0))
    assert isinstance(error, WorkerStartFailed)
    return error


async def wait_ready(worker: Worker) -> None:
    await wait_until(lambda: worker.state is WorkerState.READY)


def said(caplog: pytest.LogCaptureFixture, logger: str = FRONTEND_LOG) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == logger]


@pytest.fixture
def scripted(bench: Bench) -> Script:
    bench.script = Script()
    return bench.script


# Start and load.


@pytest.mark.parametrize("connection", ["unix", "tcp"])
async def test_a_worker_starts_loads_and_answers(bench: Bench, connection: str) -> None:
    if connection == "tcp":
        bench.use_tcp()
    pool = await bench.serving(batch_size=3)
    (worker,) = pool.workers
    assert worker.state is WorkerState.READY
    assert [worker.pid] == bench.pids()
    assert bench.meters.loads == [worker.name]
    assert await answer_of(ask(pool)) == b"hello"

    facts = json.loads(await answer_of(ask(pool, b"describe")))
    where = {
        "unix": ["--sock-type", "unix", "--sock-name", f"{bench.sockets}/.ts.sock.{FIRST_PORT}"],
        "tcp": ["--sock-type", "tcp", "--port", str(worker.place.port)],
    }
    assert facts["argv"][1:] == [*where[connection], "--metrics-config", "metrics.yaml"]
    assert facts["cwd"] == str(bench.model_dir)
    model_dir = str(bench.model_dir)
    load = LoadModel("m", model_dir, 3, "handler.py", None, "", True)
    assert facts["load"] == load._asdict()
    paths = facts["environ"]["PYTHONPATH"].split(":")
    assert paths[1:] == [model_dir, str(bench.home)]


async def test_a_model_without_a_handler_names_its_folder_instead(
    bench: Bench, scripted: Script
) -> None:
    pool = bench.pool()
    pool.model.handler = ""
    await pool.wait_loaded(pool.scale(1, 1, 0))
    (connection,) = scripted.connections
    assert connection.load is not None
    assert connection.load.handler == str(bench.model_dir)


async def test_a_worker_is_named_by_port_and_model(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving()
    (worker,) = pool.workers
    assert worker.name == f"W-{FIRST_PORT}-m_1.0"
    assert repr(worker) == f"<Worker m/1.0 #{FIRST_PORT} READY pid={worker.pid} batches=0>"
    assert worker.is_healthy
    assert not worker.is_busy


# How it starts -> the kind of the failure, its cause for the log.
INTERNAL, OUT_OF_MEMORY = ErrorKind.INTERNAL, ErrorKind.OUT_OF_MEMORY
START_FAILURES = [
    ("dies", INTERNAL, "Backend stream closed. (exit code 3)"),
    ("killed", OUT_OF_MEMORY, "Backend stream closed. (ended by signal 9)"),
    ("dies-loading", INTERNAL, "ended while loading the model (exit code 3)"),
    ("killed-loading", OUT_OF_MEMORY, "ended while loading the model (ended by signal 9)"),
]


@pytest.mark.parametrize(("how", "kind", "cause"), START_FAILURES)
async def test_a_failed_start_is_told_and_tried_again(
    bench: Bench, how: str, kind: ErrorKind, cause: str
) -> None:
    bench.starts(how)
    pool = bench.pool()
    error = await start_failure(pool)
    assert str(error) == "Failed to start workers for model m version: 1.0"
    assert (error.kind, error.cause, error.was_refused) == (kind, cause, False)
    (worker,) = pool.workers
    await wait_ready(worker)
    assert worker.last_failure == cause
    assert worker.restarts == 1
    assert worker.failure is not None
    assert bench.meters.deaths == [worker.failure.ending]
    assert cause.endswith(f"({worker.failure.ending})")
    assert await answer_of(ask(pool)) == b"hello"


REFUSALS = [(500, INTERNAL), (507, OUT_OF_MEMORY), (413, OUT_OF_MEMORY)]


@pytest.mark.parametrize(("code", "kind"), REFUSALS)
async def test_a_worker_may_refuse_to_load(bench: Bench, code: int, kind: ErrorKind) -> None:
    bench.starts(f"refuses-{code}")
    pool = bench.pool()
    error = await start_failure(pool)
    assert error.kind is kind
    assert error.was_refused
    assert error.cause.startswith("the stand-in refuses")
    await wait_ready(pool.workers[0])


async def test_serve_2061_a_worker_that_does_not_load_in_time_is_ended(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.starts("hangs-loading")
    pool = bench.pool(startup_timeout_s=0.5)
    error = await start_failure(pool)
    assert error.cause == "did not load the model within 0.5 s (startupTimeout)"
    assert "Backend worker did not respond in given time" in said(caplog)
    (first,) = bench.pids()
    await wait_until(lambda: not is_running(first))


async def test_a_worker_that_never_says_it_listens_is_ended(bench: Bench) -> None:
    bench.starts("hangs")
    bench.times = replace(bench.times, listen_s=0.2)
    pool = bench.pool()
    error = await start_failure(pool)
    assert error.cause == "did not listen within 0.2 s"


async def test_a_worker_may_listen_a_moment_after_it_has_said_so(bench: Bench) -> None:
    """Some runtimes print the line first."""
    bench.starts("listens-late")
    pool = await bench.serving()
    assert pool.workers[0].restarts == 0


@pytest.mark.parametrize("connection", ["unix", "tcp"])
async def test_a_worker_that_listens_nowhere_is_given_up(bench: Bench, connection: str) -> None:
    if connection == "tcp":
        bench.use_tcp()
    bench.starts("never-listens")
    bench.times = replace(bench.times, connect_s=0.1, exit_s=0.05)
    pool = bench.pool()
    error = await start_failure(pool)
    assert error.cause.startswith("cannot connect to the worker: ")
    assert "None" not in error.cause


async def test_a_refused_connection_is_tried_again(bench: Bench, scripted: Script) -> None:
    scripted.refusals.extend([ConnectionRefusedError(), FileNotFoundError()])
    pool = await bench.serving()
    assert pool.workers[0].restarts == 0
    assert scripted.addresses == [f"{bench.sockets}/.ts.sock.{FIRST_PORT}"]


async def test_another_fault_of_the_connection_is_not(bench: Bench, scripted: Script) -> None:
    scripted.refusals.append(OSError("AF_UNIX path too long"))
    error = await start_failure(bench.pool())
    assert error.cause == "cannot connect to the worker: AF_UNIX path too long"


async def test_nobody_knocks_at_the_door_of_a_dead_process(bench: Bench, scripted: Script) -> None:
    (bench.home / "ts" / "model_service_worker.py").write_text("echo 'Torch worker started.'\n")
    scripted.refusals.extend(ConnectionRefusedError() for _ in range(1000))
    error = await start_failure(bench.pool())
    assert "exit code 0" in error.cause


async def test_an_interpreter_that_is_not_there(bench: Bench, scripted: Script) -> None:
    pool = bench.pool()
    pool._launch = replace(pool._launch, python="/no/such/python")
    error = await start_failure(pool)
    assert error.cause == "cannot start /no/such/python: No such file or directory"
    assert pool.workers[0].pid == -1


async def test_the_log_has_the_last_words_of_a_worker(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.starts("dies")
    await start_failure(bench.pool())
    (warning,) = [r for r in caplog.records if "worker died" in r.getMessage()]
    assert warning.levelno == logging.WARNING
    assert "exit code 3" in warning.getMessage()
    assert "    the stand-in had to die" in warning.getMessage()
    assert warning.__dict__["thread_name"] == f"W-{FIRST_PORT}-m_1.0"


# Serving.


async def test_the_answer_of_a_handler_reaches_the_client(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving()
    job = ask(pool, b"body")
    (chunk,) = await job.response.wait_complete()
    assert (chunk.status, chunk.body, chunk.is_last) == (200, b"body", True)
    assert job.state is JobState.FINISHED


async def test_a_failed_batch_fails_each_of_its_jobs(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving(batch_size=2, max_batch_delay_ms=1000)
    scripted.then(fails(503, "Prediction failed"))
    for error in await asyncio.gather(*(failure_of(ask(pool)) for _ in range(2))):
        assert isinstance(error, ModelError)
        assert (error.code, str(error)) == (503, "Prediction failed")
    # A handler's failure is no death of its worker.
    jobs = [ask(pool, b"a"), ask(pool, b"b")]
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"a", b"b"]
    assert pool.workers[0].restarts == 0


async def test_a_stream_reaches_its_client_piece_by_piece(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving()
    scripted.then(holds)
    job = ask(pool)
    client = RecordingConsumer(job.response)
    worker = scripted.connections[0]
    await wait_until(lambda: worker.batches)
    for body in (b"1", b"2"):
        worker.answer([body], more=True)
        await wait_until(lambda body=body: client.bodies[-1:] == [body])
        assert job.state is JobState.RUNNING
    worker.answer([b"3"], more=False)
    await wait_until(lambda: client.is_answered)
    assert client.bodies == [b"1", b"2", b"3"]
    assert await answer_of(ask(pool)) == b"hello"


async def test_streams_of_a_batch_end_one_by_one(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving(batch_size=2, max_batch_delay_ms=1000)

    def one_is_longer(worker: ScriptedConnection, batch: Batch) -> None:
        worker.answer([b"a1", b"b1"], more=True)
        predictions = [(b"a2", b"false"), (b"b2", b"true")]
        for last in (predictions, [(b"a?", b"false"), (b"b3", b"false")]):
            worker.reply(
                worker_prediction(request.id, body, more)
                for request, (body, more) in zip(batch, last, strict=True)
            )

    scripted.then(one_is_longer)
    clients = [RecordingConsumer(ask(pool).response) for _ in range(2)]
    await wait_until(lambda: all(client.is_answered for client in clients))
    await turns()
    assert [client.bodies for client in clients] == [[b"a1", b"a2"], [b"b1", b"b2", b"b3"]]


def worker_prediction(request_id: bytes, body: bytes, more: bytes) -> Prediction:
    return Prediction(request_id, b"", 200, b"", [(b"ts_stream_next", more)], body)


async def test_a_describe_travels_alone(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving(batch_size=4, max_batch_delay_ms=50)
    jobs = [ask(pool), ask(pool, b"what are you", command=Command.DESCRIBE), ask(pool)]
    await asyncio.gather(*map(answer_of, jobs))
    assert [[request.id for request in batch] for batch in scripted.batches] == [
        [job.request.id] for job in jobs
    ]


async def test_who_leaves_costs_the_rest_of_the_batch_nothing(
    bench: Bench, scripted: Script
) -> None:
    pool = await bench.serving(batch_size=2, max_batch_delay_ms=1000)
    scripted.then(holds)
    gone, stays = ask(pool, b"gone"), ask(pool, b"stays")
    client = RecordingConsumer(gone.response)
    await wait_until(lambda: scripted.batches)
    gone.response.cancel()
    scripted.connections[0].release()
    assert await answer_of(stays) == b"stays"
    assert client.chunks == []
    assert gone.state is JobState.CANCELLED


async def test_an_expired_job_is_answered_while_the_worker_still_works(
    bench: Bench, scripted: Script
) -> None:
    pool = await bench.serving()
    scripted.then(holds)
    job = ask(pool)
    await wait_until(lambda: scripted.batches)
    job.expire()
    assert (await failure_of(job)).kind is ErrorKind.DEADLINE_EXCEEDED
    scripted.connections[0].release()
    assert await answer_of(ask(pool)) == b"hello"
    assert pool.workers[0].restarts == 0


# What no worker may say, and how a worker may end: each job of its batch hears one WorkerDied.

BROKEN = [
    (leaves, "the worker closed its connection"),
    (answers_with_id(b"somebody else"), "an answer with another request's id"),
    (answers_for(1), "1 answers for 2 requests"),
    (answers_for(3), "3 answers for 2 requests"),
    (says(b"\x00\x00\x00\xc8\x7f\xff\xff\xff...."), "the worker's reply could not be read: "),
    (says(b"\xff" * 64), "the worker's reply could not be read: "),
]


@pytest.mark.parametrize(("behaviour", "cause"), BROKEN)
async def test_a_broken_worker_is_replaced(
    bench: Bench, scripted: Script, behaviour: Any, cause: str
) -> None:
    pool = await bench.serving(batch_size=2, max_batch_delay_ms=1000)
    (worker,) = pool.workers
    first_pid = worker.pid
    scripted.then(behaviour)
    clients = [RecordingConsumer(ask(pool).response) for _ in range(2)]
    await wait_until(lambda: all(client.is_answered for client in clients))
    for client in clients:
        assert isinstance(client.error, WorkerDied)
        assert str(client.error) == "Worker died."
        assert client.error.kind is INTERNAL
        assert client.chunks == []
    jobs = [ask(pool, b"a"), ask(pool, b"b")]
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"a", b"b"]
    assert worker.restarts == 1
    assert worker.last_failure.startswith(cause)
    assert not is_running(first_pid)
    assert len(scripted.connections) == 2


async def test_a_stream_that_breaks_keeps_what_it_had(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving()

    def breaks(worker: ScriptedConnection, batch: Batch) -> None:
        worker.answer([b"1"], more=True)
        worker.hang_up()

    scripted.then(breaks)
    client = RecordingConsumer(ask(pool).response)
    await wait_until(lambda: client.is_answered)
    assert client.bodies == [b"1"]
    assert isinstance(client.error, WorkerDied)


async def test_an_answer_that_nobody_asked_for(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving()
    (worker,) = pool.workers
    assert await answer_of(ask(pool)) == b"hello"
    scripted.connections[0].release()
    await wait_until(lambda: worker.restarts == 1)
    assert worker.last_failure == "a reply that nobody asked for"
    assert await answer_of(ask(pool)) == b"hello"


async def test_an_answer_of_the_largest_size_and_one_above(bench: Bench) -> None:
    bench.max_field_bytes = 100_000
    pool = await bench.serving()
    assert len(await answer_of(ask(pool, b"oversize 100000"))) == 100_000
    error = await failure_of(ask(pool, b"oversize 100001"))
    assert isinstance(error, WorkerDied)
    await wait_ready(pool.workers[0])
    assert "response body" in pool.workers[0].last_failure


# The process's own deaths: request -> kind of the error, last failure.
DEATHS = [
    ("die", INTERNAL, "(exit code 3)"),
    ("kill", OUT_OF_MEMORY, "(ended by signal 9)"),
    ("disconnect", INTERNAL, "(exit code 1)"),
]


@pytest.mark.parametrize(("word", "kind", "cause"), DEATHS)
async def test_a_death_in_the_middle_of_a_batch(
    bench: Bench, word: str, kind: ErrorKind, cause: str
) -> None:
    pool = await bench.serving(batch_size=3, max_batch_delay_ms=1000)
    (worker,) = pool.workers
    bodies = [b"first", word.encode(), b"last"]
    clients = [RecordingConsumer(ask(pool, body).response) for body in bodies]
    await wait_until(lambda: all(client.is_answered for client in clients))
    assert [type(client.error) for client in clients] == [WorkerDied] * 3
    assert [client.error.kind for client in clients] == [kind] * 3
    assert cause in worker.last_failure
    await wait_ready(worker)
    assert worker.restarts == 1
    assert worker.pid == bench.pids()[1]
    jobs = [ask(pool, b"a"), ask(pool, b"b"), ask(pool, b"c")]
    assert await asyncio.gather(*map(answer_of, jobs)) == [b"a", b"b", b"c"]


async def test_a_kill_from_outside_counts_as_out_of_memory(bench: Bench) -> None:
    pool = await bench.serving()
    job = ask(pool, b"hang")
    await turns()
    os.kill(pool.workers[0].pid, signal.SIGKILL)
    assert (await failure_of(job)).kind is OUT_OF_MEMORY


async def test_a_request_waits_while_its_worker_comes_back(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving()
    (worker,) = pool.workers
    scripted.connections[0].hang_up()
    await wait_until(lambda: worker.state is not WorkerState.READY)
    assert pool.can_serve
    assert not pool.has_idle_worker
    assert await answer_of(ask(pool)) == b"hello"


async def test_a_request_that_meets_a_death_is_not_lost(bench: Bench, scripted: Script) -> None:
    """The connection has gone, but the worker does not know it yet in this turn of the loop."""
    pool = await bench.serving()
    scripted.connections[0].connection_lost(None)
    assert pool.workers[0].state is WorkerState.READY
    job = ask(pool)
    assert job.state is JobState.WAITING
    assert await answer_of(job) == b"hello"
    assert [len(connection.batches) for connection in scripted.connections] == [0, 1]


# Time.


async def test_no_answer_in_time_ends_the_worker(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pool = await bench.serving(response_timeout_s=0.3)
    (worker,) = pool.workers
    for count in (1, 2):
        error = await failure_of(ask(pool, b"hang"))
        assert isinstance(error, WorkerDied)
        assert error.kind is INTERNAL  # our own kill is no lack of memory
        assert f"Number or consecutive unsuccessful inference {count}" in said(caplog)
    assert "Backend worker did not respond in given time: 0.3 s" in said(caplog)
    assert await answer_of(ask(pool)) == b"hello"
    assert worker.restarts == 2
    assert worker.last_failure == "no reply within responseTimeout"
    await failure_of(ask(pool, b"hang"))
    assert said(caplog).count("Number or consecutive unsuccessful inference 1") == 2
    assert [pid for pid in bench.pids()[:-1] if is_running(pid) and pid != worker.pid] == []


async def test_each_part_of_a_stream_has_the_whole_time(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving(response_timeout_s=0.2)
    loop = asyncio.get_running_loop()

    def trickles(worker: ScriptedConnection, batch: Batch) -> None:
        for number in range(1, 6):
            loop.call_later(0.07 * number, lambda: worker.answer([b"x"], more=True))
        loop.call_later(0.07 * 6, lambda: worker.answer([b"x"], more=False))

    scripted.then(trickles)
    began_s = loop.time()
    chunks = await ask(pool).response.wait_complete()
    assert len(chunks) == 6
    assert loop.time() - began_s > 0.2
    assert pool.workers[0].restarts == 0


async def test_a_stream_that_stalls_ends_the_worker(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving(response_timeout_s=0.1)

    def stalls(worker: ScriptedConnection, batch: Batch) -> None:
        worker.answer([b"x"], more=True)

    scripted.then(stalls)
    client = RecordingConsumer(ask(pool).response)
    await wait_until(lambda: client.is_answered)
    assert client.bodies == [b"x"]
    assert isinstance(client.error, WorkerDied)


async def test_an_idle_worker_owes_nothing(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving(response_timeout_s=0.05)
    loop = asyncio.get_running_loop()
    assert await answer_of(ask(pool)) == b"hello"
    later_s = loop.time() + 0.15
    await wait_until(lambda: loop.time() > later_s)
    assert await answer_of(ask(pool)) == b"hello"
    assert pool.workers[0].restarts == 0


async def test_a_new_process_does_not_owe_what_the_old_one_did(
    bench: Bench, scripted: Script
) -> None:
    pool = await bench.serving(response_timeout_s=0.1)
    loop = asyncio.get_running_loop()
    scripted.then(leaves)
    assert isinstance(await failure_of(ask(pool)), WorkerDied)
    later_s = loop.time() + 0.2
    await wait_until(lambda: loop.time() > later_s)
    assert pool.workers[0].restarts == 1


async def test_a_busy_worker_is_not_ended_for_an_old_batch(bench: Bench, scripted: Script) -> None:
    """One timer watches all batches; it must look at the newest one."""
    pool = await bench.serving(response_timeout_s=0.1)
    loop = asyncio.get_running_loop()

    def slow(worker: ScriptedConnection, batch: Batch) -> None:
        loop.call_later(0.04, worker.release)

    scripted.default = slow
    for _ in range(5):
        assert await answer_of(ask(pool)) == b"hello"
    assert pool.workers[0].restarts == 0


# Coming back.


def test_the_delays_are_torchserves() -> None:
    assert BACKOFF_SECONDS[1:9] == (1, 1, 2, 3, 5, 8, 13, 21)
    assert BACKOFF_SECONDS[-1] == 1597
    for before, between, after in zip(
        BACKOFF_SECONDS[1:], BACKOFF_SECONDS[2:], BACKOFF_SECONDS[3:], strict=False
    ):
        assert after == before + between
    assert WorkerTimes().backoff_s is BACKOFF_SECONDS


def delays(caplog: pytest.LogCaptureFixture) -> list[float]:
    found = [re.match(r"Retry worker: 9000 in (\S+) seconds\.", line) for line in said(caplog)]
    return [float(match[1]) for match in found if match]


async def test_the_delay_grows_and_stays_at_the_longest(
    bench: Bench, scripted: Script, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.times = replace(bench.times, backoff_s=(9.0, 0.001, 0.002, 0.003))
    pool = bench.pool()
    pool._launch = replace(pool._launch, python="/no/such/python")
    pool.scale(1, 1, 0)
    await wait_until(lambda: len(delays(caplog)) >= 6)
    assert delays(caplog)[:6] == [0.001, 0.002, 0.003, 0.003, 0.003, 0.003]


async def test_a_worker_that_only_loads_before_it_ends_is_started_ever_later(
    bench: Bench, scripted: Script, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.times = replace(bench.times, backoff_s=(9.0, 0.001, 0.002, 0.003))
    pool = await bench.serving()
    (worker,) = pool.workers
    for restart in range(1, 4):
        scripted.connections[-1].hang_up()
        await wait_until(lambda restart=restart: worker.restarts == restart)
        await wait_ready(worker)
    assert delays(caplog) == [0.001, 0.002, 0.003]


async def test_a_load_and_an_answer_set_the_delay_back(
    bench: Bench, scripted: Script, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.times = replace(bench.times, backoff_s=(9.0, 0.001, 0.002, 0.003))
    scripted.refusals.extend(OSError("no") for _ in range(2))
    pool = bench.pool()
    pool.scale(1, 1, 0)
    (worker,) = pool.workers
    await wait_ready(worker)
    await answer_of(ask(pool))
    scripted.connections[-1].hang_up()
    await wait_until(lambda: worker.restarts == 3)
    await wait_ready(worker)
    assert delays(caplog) == [0.001, 0.002, 0.001]
    lines = [re.sub(r"\d{13}", "T", line) for line in said(caplog) if "Auto recovery" in line]
    assert lines == [
        "Auto recovery start timestamp: T",
        "Auto recovery failed again",
        "Auto recovery succeeded, reset recoveryStartTS",
        "Auto recovery start timestamp: T",
        "Auto recovery succeeded, reset recoveryStartTS",
    ]


@pytest.mark.parametrize("window_s", [0, 0.05])
async def test_a_worker_is_given_up_after_the_retry_window(
    bench: Bench, scripted: Script, window_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pool = await bench.serving(max_retry_timeout_s=window_s)
    (worker,) = pool.workers
    scripted.refusals.extend(OSError("no") for _ in range(1000))
    scripted.then(leaves)
    running, waiting = ask(pool), ask(pool)
    assert isinstance(await failure_of(running), WorkerDied)
    # Nobody is left who could ever answer.
    refused = await failure_of(waiting)
    assert isinstance(refused, NoWorker)
    assert refused.reason == f"worker_{pool.failure_cause}" != "worker_"
    assert worker.state is WorkerState.DEAD
    assert not worker.is_healthy
    assert not pool.can_serve
    assert "No more retries: the retry window (maxRetryTimeoutInSec) is over." in said(caplog)
    assert len(delays(caplog)) == worker.restarts
    if window_s == 0:
        assert worker.restarts == 0


# Stop.


async def test_a_stop_lets_the_running_batch_finish(bench: Bench) -> None:
    pool = await bench.serving()
    running, waiting = ask(pool, b"hold"), ask(pool)
    await wait_until(bench.is_held)
    (worker,) = pool.workers
    pool.scale(0, 0, 20)
    assert isinstance(await failure_of(waiting), NoWorker)
    assert worker.state is WorkerState.STOPPING
    assert worker.is_busy
    bench.release()
    assert await answer_of(running) == b"done"
    await wait_until(lambda: worker.state is WorkerState.STOPPED)


async def test_a_stop_lets_a_stream_finish(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving()
    scripted.then(holds)
    client = RecordingConsumer(ask(pool).response)
    (connection,) = scripted.connections
    await wait_until(lambda: connection.batches)
    pool.scale(0, 0, 20)
    connection.answer([b"1"], more=True)
    await wait_until(lambda: client.bodies)
    connection.answer([b"2"], more=False)
    await wait_until(lambda: client.is_answered)
    assert client.bodies == [b"1", b"2"]


@pytest.mark.parametrize("grace_s", [0, 0.05])
async def test_a_batch_that_outlasts_the_grace_is_cut(
    bench: Bench, scripted: Script, grace_s: float
) -> None:
    pool = await bench.serving()
    scripted.then(holds)
    client = RecordingConsumer(ask(pool).response)
    await wait_until(lambda: scripted.batches)
    pool.scale(0, 0, grace_s)
    await wait_until(lambda: client.is_answered)
    assert isinstance(client.error, WorkerDied)
    assert client.error.kind is INTERNAL


async def test_a_death_within_the_grace_is_told_as_any_other(bench: Bench) -> None:
    pool = await bench.serving()
    job = ask(pool, b"hang")
    await turns()
    pool.scale(0, 0, 20)
    await turns()
    os.kill(bench.pids()[0], signal.SIGKILL)
    assert (await failure_of(job)).kind is OUT_OF_MEMORY


async def test_a_death_within_the_grace_is_no_reason_to_retry(
    bench: Bench, scripted: Script
) -> None:
    pool = await bench.serving(max_retry_timeout_s=0)
    (worker,) = pool.workers
    scripted.then(holds)
    job = ask(pool)
    await wait_until(lambda: scripted.batches)
    pool.scale(0, 0, 20)
    await turns()
    scripted.connections[0].hang_up()
    assert isinstance(await failure_of(job), WorkerDied)
    await wait_until(lambda: worker.state is WorkerState.STOPPED)
    assert worker.restarts == 0


async def test_a_hang_within_the_grace_ends_with_its_own_time(
    bench: Bench, scripted: Script
) -> None:
    pool = await bench.serving(response_timeout_s=0.1)
    scripted.then(holds)
    job = ask(pool)
    await wait_until(lambda: scripted.batches)
    (worker,) = pool.workers
    pool.scale(0, 0, 600)
    assert isinstance(await failure_of(job), WorkerDied)
    await wait_until(lambda: worker.state is WorkerState.STOPPED)


# Where a worker may be when it is stopped: how it starts, its state then.
STOPS = [
    ("hangs", WorkerState.STARTING),
    ("hangs-loading", WorkerState.LOADING),
    ("dies", WorkerState.RECOVERING),
    ("never-listens", WorkerState.STARTING),
    ("normal", WorkerState.READY),
]


@pytest.mark.parametrize(("how", "state"), STOPS)
async def test_a_stop_does_not_wait_for_what_the_worker_was_doing(
    bench: Bench, how: str, state: WorkerState
) -> None:
    bench.starts(how)
    bench.times = replace(bench.times, backoff_s=(0, 600), connect_s=600, exit_s=600, goodbye_s=600)
    pool = bench.pool(startup_timeout_s=600)
    (worker,) = pool.scale(1, 1, 0)
    await wait_until(lambda: bench.pids() and worker.state is state)
    async with asyncio.timeout(10):
        await pool.close(600)
        error = await worker.first_load
    assert worker.state is WorkerState.STOPPED
    assert (error is None) == (state is WorkerState.READY)


async def test_a_stop_while_the_process_is_being_spawned(bench: Bench) -> None:
    bench.starts("hangs")
    bench.times = replace(bench.times, exit_s=600, goodbye_s=600, listen_s=600)
    pool = bench.pool()
    (worker,) = pool.scale(1, 1, 0)
    async with asyncio.timeout(10):
        await pool.close(0)
        error = await worker.first_load
    assert isinstance(error, WorkerStartFailed)
    assert worker.restarts == 0


async def test_a_stop_of_a_worker_that_was_given_up(bench: Bench, scripted: Script) -> None:
    scripted.refusals.append(OSError("no"))
    pool = bench.pool(max_retry_timeout_s=0)
    (worker,) = pool.scale(1, 1, 0)
    await wait_until(lambda: worker.state is WorkerState.DEAD)
    await pool.close(0)
    assert worker.state is WorkerState.STOPPED


async def test_a_second_stop_is_nothing(bench: Bench, scripted: Script) -> None:
    pool = await bench.serving()
    (worker,) = pool.workers
    await asyncio.gather(worker.stop(0), worker.stop(0))
    await wait_until(lambda: worker.state is WorkerState.STOPPED)
    await worker.stop(0)


async def test_a_worker_ends_by_itself_when_its_connection_does(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """It has time for its exit hooks; only who does not use it is killed."""
    caplog.set_level(logging.INFO)
    pool = await bench.serving()
    await pool.close(0)
    assert "Frontend disconnected." in said(caplog, "MODEL_LOG")


async def test_a_worker_that_ignores_the_end_is_killed(bench: Bench) -> None:
    bench.times = replace(bench.times, goodbye_s=0.1)
    pool = await bench.serving()
    assert await answer_of(ask(pool, b"ignore-end")) == b"done"
    (pid,) = bench.pids()
    await pool.close(0)
    assert not is_running(pid)


async def test_what_a_handler_has_started_ends_with_its_worker(bench: Bench) -> None:
    pool = await bench.serving()
    child = int(await answer_of(ask(pool, b"fork")))
    assert is_running(child)
    await pool.close(0)
    await wait_until(lambda: not is_running(child))


async def test_what_a_handler_has_sent_away_holds_up_nobody(bench: Bench) -> None:
    pool = await bench.serving()
    child = int(await answer_of(ask(pool, b"fork away")))
    async with asyncio.timeout(10):
        await pool.close(0)
    assert is_running(child)
    os.kill(child, signal.SIGKILL)


async def test_a_worker_leaves_no_socket_behind(bench: Bench) -> None:
    pool = await bench.serving()
    assert [path.name for path in bench.sockets.iterdir()] == [f".ts.sock.{FIRST_PORT}"]
    os.kill(bench.pids()[0], signal.SIGKILL)
    await wait_until(lambda: pool.workers[0].restarts == 1)
    await wait_ready(pool.workers[0])
    await pool.close(0)
    assert list(bench.sockets.iterdir()) == []


# What it prints.


async def test_what_a_worker_prints_is_in_the_model_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pool = await bench.serving()
    for body in (b"print to stdout %d {}", b"print-error to stderr", b"print [METRICS]a.b:1"):
        await answer_of(ask(pool, body))
    await pool.close(0)
    records = [record for record in caplog.records if record.name == "MODEL_LOG"]
    found = {(r.getMessage(), r.levelno, r.__dict__["thread_name"]) for r in records}
    name = f"W-{FIRST_PORT}-m_1.0"
    assert ("to stdout %d {}", logging.INFO, f"{name}-stdout") in found
    assert ("to stderr", logging.WARNING, f"{name}-stderr") in found
    assert ("Torch worker started.", logging.INFO, f"{name}-stdout") in found
    assert not [record for record in records if "METRICS" in record.getMessage()]


async def test_a_handler_that_prints_without_end_costs_no_memory(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pool = await bench.serving()
    assert await answer_of(ask(pool, b"print-much 500000")) == b"done"
    lines: list[str] = []

    def has_all() -> bool:
        lines[:] = [line for line in said(caplog, "MODEL_LOG") if line.startswith("xxx")]
        return sum(map(len, lines)) >= 400_000

    await wait_until(has_all)
    assert max(map(len, lines)) <= 64 * 1024


# Our own faults.


async def test_a_fault_of_ours_ends_the_worker_and_is_in_the_log(
    bench: Bench, scripted: Script, caplog: pytest.LogCaptureFixture
) -> None:
    bench.meters.bug = RuntimeError("a bug in the metrics")
    pool = bench.pool()
    (worker,) = pool.scale(1, 1, 0)
    waiting = ask(pool)
    assert isinstance(await failure_of(waiting), NoWorker)
    assert isinstance(await worker.first_load, ServingError)
    assert worker.state is WorkerState.STOPPED
    assert not pool.can_serve
    await turns()
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "a bug in the metrics" in str(record.exc_info and record.exc_info[1])
    # Asking for workers is the way to try again.
    assert await pool.wait_loaded(pool.scale(1, 1, 0)) is None
    assert await answer_of(ask(pool)) == b"hello"


async def test_a_cancelled_worker_cleans_up(bench: Bench, scripted: Script) -> None:
    """The server's end may come by cancelling everything."""
    pool = await bench.serving()
    (worker,) = pool.workers
    pid = worker.pid
    scripted.then(holds)
    job = ask(pool)
    await wait_until(lambda: scripted.batches)
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == worker.name]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert isinstance(await failure_of(job), WorkerDied)
    assert worker.state is WorkerState.STOPPED
    assert not is_running(pid)


# The worker that the server ships.

REAL_WORKER = Path(__file__).resolve().parents[3] / "ts" / "model_service_worker.py"
ECHO_HANDLER = """
def handle(data, context):
    return [row.get("body") or row.get("data") for row in data] if data else None
"""


@pytest.mark.skipif(not REAL_WORKER.exists(), reason="the backend is not there yet")
async def test_the_real_worker_lives_such_a_life_too(bench: Bench) -> None:
    root = REAL_WORKER.parents[1]
    (bench.model_dir / "echo.py").write_text(ECHO_HANDLER)
    pool = bench.pool()
    pool.model.handler = "echo.py:handle"
    pool._launch = replace(
        pool._launch,
        home=str(root),
        metrics_config=str(root / "ts" / "configs" / "metrics.yaml"),
    )
    bench.times = replace(bench.times, listen_s=60)
    assert await pool.wait_loaded(pool.scale(1, 1, 0)) is None
    (worker,) = pool.workers
    assert await answer_of(ask(pool, b"a body")) == b"a body"
    os.kill(worker.pid, signal.SIGKILL)
    await wait_until(lambda: worker.restarts == 1)
    assert await answer_of(ask(pool, b"another")) == b"another"
    pid = worker.pid
    await pool.close(5)
    assert not is_running(pid)
