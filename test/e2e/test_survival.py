"""Requests whose worker dies, hangs or is replaced, and clients that leave: nobody else suffers."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
import requests
from serving import MODELS, RunningServer, archive, start_server, wait_until

from ts_frontend.grpc.stubs.inference_pb2 import PredictionsRequest
from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub

CHECK_INTERVAL_S = 0.3
CONFIGS = {
    "echo": "minWorkers: 2\nmaxWorkers: 2\n",
    "dies": "minWorkers: 2\nmaxWorkers: 2\nbatchSize: 4\nmaxBatchDelay: 30\n",
    "cooperates": "minWorkers: 1\nmaxWorkers: 1\n",
    "sleeps_async": "minWorkers: 1\nmaxWorkers: 1\nasyncCommunication: true\n",
    "sleeps": "minWorkers: 1\nmaxWorkers: 1\ncancelGraceInSec: 1\n",
    "streams_for_ever": "minWorkers: 1\nmaxWorkers: 1\n",
    "bad_apple": "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 8\nmaxBatchDelay: 100\n",
}


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("survival")
    running = start_server(folder, store, worker_check_interval=CHECK_INTERVAL_S)
    for name, text in CONFIGS.items():
        register(running, name, text, folder)
    yield running
    running.stop_and_leave_nothing()


def register(
    server: RunningServer, model: str, config: str, folder: Path, name: str | None = None
) -> None:
    name = name or model
    path = folder / f"{name}.yaml"
    path.write_text(config)
    archive(server.store, name, MODELS / f"{model}.py", config_file=str(path))
    answer = server.register(f"{name}.mar")
    assert answer.status_code == 200, answer.text


@contextmanager
def load(server: RunningServer, model: str, clients: int = 3) -> Iterator[Counter[str]]:
    """Clients that ask one after the other; counts the answers by status and equality."""
    answers: Counter[str] = Counter()
    is_over = threading.Event()

    def ask(client: int) -> None:
        with requests.Session() as session:
            for number in itertools.count():
                if is_over.is_set():
                    return
                body = f"{client}-{number}"
                answer = session.post(
                    f"{server.inference}/predictions/{model}", data=body, timeout=60
                )
                is_own = answer.text == body
                answers[f"{answer.status_code}{'' if is_own else ' ' + answer.text}"] += 1

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(ask, client) for client in range(clients)]
        try:
            wait_until(lambda: answers["200"] > 20, what="answers")
            yield answers
        finally:
            is_over.set()
        for client in running:
            client.result()


def more(answers: Counter[str], count: int = 20) -> None:
    """Wait for so many further answers."""
    before = answers["200"]
    wait_until(lambda: answers["200"] >= before + count, what=f"answers; so far {answers}")


def abort(server: RunningServer, model: str, body: bytes, *, after_bytes: int = 0) -> None:
    """Ask, and leave when the request is in the model (or after so many bytes of its answer)."""
    requests_before = server.requests_to(model)
    place = urlsplit(server.inference)
    assert place.hostname
    assert place.port
    with socket.create_connection((place.hostname, place.port), timeout=20) as client:
        client.sendall(
            f"POST /predictions/{model} HTTP/1.1\r\nHost: t\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        while after_bytes > 0:
            after_bytes -= len(client.recv(65536))
        wait_until(
            lambda: server.requests_to(model) > requests_before,
            what="the request to be counted",
        )


def answer_s(server: RunningServer, model: str, body: bytes) -> float:
    began_s = time.monotonic()
    answer = server.predict(model, body)
    assert answer.status_code == 200, answer.text
    return time.monotonic() - began_s


# Deaths.


def test_serve_281_no_request_is_lost_when_a_worker_is_killed(server: RunningServer) -> None:
    with load(server, "echo") as answers:
        for _ in range(2):
            server.wait_ready("echo", 2)
            os.kill(server.worker_pids("echo")[0], signal.SIGKILL)
            more(answers)
        server.wait_ready("echo", 2)
    assert set(answers) == {"200"}


def test_a_poisonous_request_alone_is_given_up(server: RunningServer) -> None:
    """Its neighbours in the batch get their answers, and no third worker meets it."""
    before = server.metric("ts_worker_restarts_total", "dies")

    def ask(body: str) -> requests.Response:
        return requests.post(f"{server.inference}/predictions/dies", data=body, timeout=60)

    bodies = ["a", "b", "kill", "c", "d", "e", "f"]
    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = dict(zip(bodies, clients.map(ask, bodies), strict=True))
    poison = answers.pop("kill")
    assert {body: answer.text for body, answer in answers.items()} == {b: b for b in answers}
    assert poison.status_code == 503, poison.text
    assert poison.json()["type"] == "ServiceUnavailableException"
    assert "Worker died 2 times while it ran this request" in poison.json()["message"]
    assert "signal 9" in poison.json()["message"]
    assert server.metric("ts_worker_restarts_total", "dies") - before == 2
    assert server.metric("ts_quarantined_requests_total", "dies") == 1
    assert "is given up: 2 workers died with it on board" in server.log.read_text()
    server.wait_ready("dies", 2)


def test_serve_2300_the_cause_of_a_death_is_told(server: RunningServer) -> None:
    for body, cause in (("_exit", "exit code 5"), ("abort", "ended by signal 6")):
        answer = server.predict("dies", body)
        assert answer.status_code == 503
        assert cause in answer.json()["message"]
        assert server.metric("ts_worker_restarts_total", "dies", cause=cause)
    server.wait_ready("dies", 2)


def test_serve_2428_the_log_says_why_a_model_does_not_load(server: RunningServer) -> None:
    archive(server.store, "fails_on_import", MODELS / "fails_on_import.py")
    assert server.register("fails_on_import.mar", initial_workers=1).status_code == 500
    died = [line for line in server.log.read_text().splitlines() if "worker died: " in line]
    assert re.search(r"W-\d+-fails_on_import_1.0 .*: \w*Error: ", died[-1])


def test_serve_1329_a_bad_request_fails_alone_in_its_batch(server: RunningServer) -> None:
    def ask(body: str) -> requests.Response:
        return requests.post(f"{server.inference}/predictions/bad_apple", data=body, timeout=60)

    (pid,) = server.worker_pids("bad_apple")
    bodies = ["a", "bad", "b", "c", "short", "d", "e", "f"]
    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = dict(zip(bodies, clients.map(ask, bodies), strict=True))
    bad, short = answers.pop("bad"), answers.pop("short")
    assert (bad.status_code, bad.json()["message"]) == (503, "Prediction failed")
    message = "number of batch response mismatched"
    assert (short.status_code, short.json()["message"]) == (503, message)
    assert {body: answer.text for body, answer in answers.items()} == {b: b for b in answers}
    assert server.worker_pids("bad_apple") == [pid]


# Clients that leave.


@pytest.mark.parametrize("model", ["cooperates", "sleeps_async"])
def test_serve_1888_client_abort(server: RunningServer, model: str) -> None:
    """Twenty clients leave a handler of ten seconds: the next one waits for none of them."""
    (pid,) = server.worker_pids(model)
    for _ in range(20):
        abort(server, model, b"10")
    assert answer_s(server, model, b"0.01") < 1
    assert server.worker_pids(model) == [pid]


def test_lmdeploy_1788_a_stream_ends_with_its_client(server: RunningServer) -> None:
    (pid,) = server.worker_pids("streams_for_ever")
    for _ in range(5):
        abort(server, "streams_for_ever", b"", after_bytes=300)
        assert answer_s(server, "streams_for_ever", b"plain") < 1
    assert server.worker_pids("streams_for_ever") == [pid]


def test_a_grpc_call_that_is_cancelled_stops_the_work(server: RunningServer) -> None:
    (pid,) = server.worker_pids("cooperates")
    with grpc.insecure_channel(server.grpc_inference) as channel:
        stub = InferenceAPIsServiceStub(channel)
        for ask in (stub.Predictions.future, stub.StreamPredictions):
            before = server.requests_to("cooperates")
            call = ask(PredictionsRequest(model_name="cooperates", input={"data": b"10"}))
            wait_until(
                lambda before=before: server.requests_to("cooperates") > before,
                what="the request to be counted",
            )
            call.cancel()
            assert answer_s(server, "cooperates", b"0.01") < 1
    assert server.worker_pids("cooperates") == [pid]


def test_the_deadline_of_a_grpc_call_stops_the_work(server: RunningServer) -> None:
    (pid,) = server.worker_pids("cooperates")
    request = PredictionsRequest(model_name="cooperates", input={"data": b"10"})
    with grpc.insecure_channel(server.grpc_inference) as channel:
        with pytest.raises(grpc.RpcError) as late:
            InferenceAPIsServiceStub(channel).Predictions(request, timeout=0.5)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert answer_s(server, "cooperates", b"0.01") < 1
    assert server.worker_pids("cooperates") == [pid]


def test_serve_2814_a_deadline_stops_the_work(server: RunningServer, tmp_path: Path) -> None:
    config = "minWorkers: 1\nmaxWorkers: 1\nclientTimeoutInMills: 300\n"
    register(server, "cooperates", config, tmp_path, "hurries")
    assert server.predict("hurries", b"10").status_code == 408
    assert answer_s(server, "hurries", b"0.01") < 0.3


def test_a_handler_that_goes_on_for_nobody_is_replaced_where_that_is_set(
    server: RunningServer,
) -> None:
    (pid,) = server.worker_pids("sleeps")
    abort(server, "sleeps", b"30")
    assert answer_s(server, "sleeps", b"0") < 15
    assert server.worker_pids("sleeps") != [pid]


# Liveness.


def test_triton_8604_an_idle_worker_that_was_stopped_is_replaced(server: RunningServer) -> None:
    before = server.worker_pids("echo")
    os.kill(before[0], signal.SIGSTOP)
    wait_until(lambda: not psutil.pid_exists(before[0]), what="the end of the stopped worker")
    server.wait_ready("echo", 2)
    assert before[1] in server.worker_pids("echo")


def test_triton_8604_a_busy_worker_that_was_stopped_is_replaced(server: RunningServer) -> None:
    with load(server, "echo") as answers:
        before = server.worker_pids("echo")
        os.kill(before[0], signal.SIGSTOP)
        more(answers)
        wait_until(lambda: not psutil.pid_exists(before[0]), what="the end of the stopped worker")
        server.wait_ready("echo", 2)
        more(answers)
    assert set(answers) == {"200"}
    assert server.metric("ts_worker_restarts_total", "echo", cause="unresponsive")


# Recycling.


def test_serve_967_recycling_loses_nothing(server: RunningServer, tmp_path: Path) -> None:
    config = "minWorkers: 2\nmaxWorkers: 2\nmaxWorkerRequests: 30\n"
    register(server, "echo", config, tmp_path, "recycles")
    seen = set(server.worker_pids("recycles"))
    with load(server, "recycles") as answers:

        def has_changed() -> bool:
            seen.update(server.worker_pids("recycles"))
            return len(seen) >= 5

        wait_until(has_changed, 60, what="three replacements")
    assert set(answers) == {"200"}
    assert len(server.worker_pids("recycles")) == 2
    server.wait_ready("recycles", 2)
    assert server.metric("ts_worker_restarts_total", "recycles") == 0


def test_serve_967_a_leak_costs_its_workers_and_no_request(
    server: RunningServer, tmp_path: Path
) -> None:
    """What a worker holds stays near the limit, however many requests leak."""
    limit_mib = 160
    config = f"minWorkers: 2\nmaxWorkers: 2\nmaxWorkerMemoryInMB: {limit_mib}\n"
    register(server, "leaks", config, tmp_path)
    seen: set[int] = set()
    highest_bytes = 0

    def has_changed() -> bool:
        nonlocal highest_bytes
        for pid in server.worker_pids("leaks"):
            seen.add(pid)
            with contextlib.suppress(psutil.Error):
                highest_bytes = max(highest_bytes, psutil.Process(pid).memory_info().rss)
        return len(seen) >= 6

    with load(server, "leaks") as answers:
        wait_until(has_changed, 60, what="four replacements")
    assert set(answers) == {"200"}
    assert highest_bytes < 3 * limit_mib * 2**20
    assert server.metric("ts_worker_restarts_total", "leaks") == 0
