"""A worker serves when it has answered what its archive asks first."""

from __future__ import annotations

import pytest
from fakes import Script, answer_of, fails, holds, leaves, put_job, streams, wait_until
from worker_bench import Bench

from ts.protocol.messages import Part
from ts_frontend.core.errors import SelfTestFailed, WorkerStartFailed
from ts_frontend.core.inference import InferenceRequest
from ts_frontend.core.self_test import SelfTest, TestRequest
from ts_frontend.core.worker_state import WorkerState
from ts_frontend.workers.pool import WorkerPool
from ts_frontend.workers.self_test import complaint_about, is_same_answer


def request(body: bytes = b"warm", **expected: object) -> TestRequest:
    asked = InferenceRequest(b"self-test-0", [], [Part(b"body", b"", body)])
    return TestRequest("warmup[0]", asked, **expected)


@pytest.fixture
def scripted(bench: Bench) -> Script:
    bench.script = Script()
    return bench.script


def pool_with(bench: Bench, *requests: TestRequest, mistake: str = "", **config) -> WorkerPool:
    pool = bench.pool(**config)
    pool.model.self_test = SelfTest(requests, mistake)
    return pool


async def failure(pool: WorkerPool) -> WorkerStartFailed:
    error = await pool.wait_loaded(pool.scale(1, 1, 0))
    assert isinstance(error, WorkerStartFailed)
    return error


async def test_every_worker_answers_before_it_serves(bench: Bench, scripted: Script) -> None:
    pool = pool_with(bench, request(repeat=2), request(b"next"))
    scripted.then(holds)
    job = put_job(pool.model.queue)
    starting = pool.scale(1, 1, 0)
    (worker,) = starting
    await wait_until(lambda: scripted.batches)
    assert worker.state is WorkerState.LOADING
    scripted.connections[0].release()
    assert await pool.wait_loaded(starting) is None
    assert await answer_of(job) == b"hello"
    sent = [bytes(batch[0].parts[0].body) for batch in scripted.batches]
    assert sent == [b"warm", b"warm", b"next", b"hello"]


async def test_one_that_is_started_again_is_warm_too(bench: Bench, scripted: Script) -> None:
    pool = pool_with(bench, request())
    assert await pool.wait_loaded(pool.scale(1, 1, 0)) is None
    scripted.connections[0].hang_up()
    await wait_until(lambda: len(scripted.connections) == 2 and pool.ready_count)
    assert len(scripted.connections[1].batches) == 1


async def test_a_stream_is_an_answer(bench: Bench, scripted: Script) -> None:
    pool = pool_with(bench, request(answer=b"one two"))
    scripted.then(streams(b"one ", b"two"))
    assert await pool.wait_loaded(pool.scale(1, 1, 0)) is None


async def test_a_failure_says_what_was_expected(bench: Bench, scripted: Script) -> None:
    scripted.default = fails(503, "Prediction failed")
    error = await failure(pool_with(bench, request()))
    assert isinstance(error, SelfTestFailed)
    assert error.message == (
        "Model m version: 1.0: self-test failed: warmup[0]: "
        "the status 503 instead of one below 400: 'Prediction failed'"
    )
    assert "self_test" in bench.meters.deaths


async def test_no_answer_is_a_failure(bench: Bench, scripted: Script) -> None:
    scripted.default = holds
    error = await failure(pool_with(bench, request(), response_timeout_s=0.05))
    assert "no answer within 0.05 s" in error.message


async def test_a_death_is_one_as_any_other(bench: Bench, scripted: Script) -> None:
    scripted.default = leaves
    error = await failure(pool_with(bench, request()))
    assert not isinstance(error, SelfTestFailed)
    assert "in its self-test" in error.cause


async def test_a_test_that_cannot_be_run_is_not_passed(bench: Bench, scripted: Script) -> None:
    error = await failure(pool_with(bench, mistake="warmup[0]: there is no file x"))
    assert "there is no file x" in error.message
    assert not scripted.batches


@pytest.mark.parametrize(
    ("body", "expected", "is_same"),
    [
        (b"a b\n", b"a b", True),
        (b'{"a": 1.0, "b": [1]}', b'{"b":[1],"a":1}', True),
        (b"[0.33334]", b"[0.33333]", True),
        (b"[0.34]", b"[0.33333]", False),
        (b"[1, 2]", b"[1]", False),
        (b'{"a": 1}', b'{"b": 1}', False),
        (b'{"a": true}', b'{"a": 1}', False),
        (b'["x"]', b'["y"]', False),
        (b"text", b"other", False),
    ],
)
def test_answers_are_compared_as_values(body: bytes, expected: bytes, is_same: bool) -> None:
    assert is_same_answer(body, expected) is is_same


@pytest.mark.parametrize(
    ("wanted", "status", "is_fine"),
    [(0, 200, True), (0, 204, True), (0, 400, False), (422, 422, True), (422, 200, False)],
)
def test_the_status_is_compared(wanted: int, status: int, is_fine: bool) -> None:
    assert (complaint_about(request(status=wanted), status, b"") == "") is is_fine
