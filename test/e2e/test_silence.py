"""What neither answers nor logs say: what a client has sent, and how the server looks inside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import requests
from serving import MODELS, RunningServer, archive, start_server

from ts_frontend.grpc.stubs.inference_pb2 import PredictionsRequest
from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub

HANDLERS = ("echo", "fails_on_predict", "dies", "wrong_length")
SENT = "what-only-the-client-knows"


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    for name in HANDLERS:
        archive(store, name, MODELS / f"{name}.py")
    running = start_server(
        tmp_path_factory.mktemp("server"),
        store,
        load_models=",".join(f"{name}.mar" for name in HANDLERS),
        default_workers_per_model=1,
        max_request_size=100_000,
        ts_open_inference_protocol="true",
    )
    for name in HANDLERS:
        running.wait_ready(name)
    yield running
    running.stop_and_leave_nothing()


def test_serve_1365_no_log_shows_what_a_client_sent(server: RunningServer) -> None:
    server.session.headers["authorization"] = f"Bearer {SENT}"
    for model in HANDLERS:
        server.predict(model, SENT)
        server.predict(model, f'{{"instances": ["{SENT}"]}}', headers={"x-secret": SENT})
        server.predict(model, files={"data": (SENT, SENT)})
    server.predict("echo", f'{{"{SENT}', headers={"content-type": "application/json"})
    server.predict("echo", SENT * 10_000)
    with grpc.insecure_channel(server.grpc_inference) as channel:
        stub = InferenceAPIsServiceStub(channel)
        for model in ("echo", "fails_on_predict"):
            stub.Predictions.future(
                PredictionsRequest(model_name=model, input={"data": SENT.encode()})
            ).exception(timeout=20)
    assert server.stop() == 0
    logs = [server.log, *(server.folder / "logs").rglob("*")]
    assert len(logs) > 4
    said = [path.name for path in logs if path.is_file() and SENT in path.read_text()]
    assert said == []


# Paths, sockets and shared memory, addresses of objects, places in code.
INSIDE = re.compile(r"/tmp|/dev/shm|\.sock|\bts-|\.py\b|0x[0-9a-f]{6}|Traceback|site-packages")


def test_cve_2025_23319_no_answer_names_what_is_inside(
    store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A name of shared memory in an error was the first step into another server (CVE-2026-22778
    was the address of an object).
    """
    folder = tmp_path_factory.mktemp("server")
    (store / "broken.mar").write_bytes(b"PK\x03\x04 and no more")
    running = start_server(
        folder,
        store,
        load_models=",".join(f"{name}.mar" for name in HANDLERS),
        default_workers_per_model=1,
        max_response_size=1_000_000,
        ts_open_inference_protocol="true",
    )
    for name in HANDLERS:
        running.wait_ready(name)
    json_type = {"content-type": "application/json"}
    answers = [
        *(running.predict(name, b"\xff\x00") for name in HANDLERS),
        *(running.predict(name, b"x" * 2_000_000) for name in HANDLERS),
        *(running.predict("dies", how) for how in ("kill", "exit", "_exit", "abort")),
        running.predict("nobody"),
        running.predict("echo/9"),
        running.predict("echo", b"{", headers=json_type),
        running.predict("echo", b"--x", headers={"content-type": "multipart/form-data"}),
        requests.post(f"{running.inference}/v2/models/echo/infer", data=b"{}", timeout=20),
        requests.post(f"{running.inference}/v2/models/dies/infer", data=b"[[", timeout=20),
        requests.post(f"{running.inference}/nowhere", timeout=20),
        requests.get(f"{running.inference}/predictions/echo/../../x", timeout=20),
        running.register("broken.mar"),
        running.register("nowhere.mar"),
        running.register("echo.mar", initial_workers="many"),
        requests.put(f"{running.management}/models/echo?min_worker=-1", timeout=20),
        requests.post(f"{running.management}/models/echo/rollout", data=b"{", timeout=20),
        requests.get(f"{running.metrics}/metrics/x", timeout=20),
    ]
    refused = [answer for answer in answers if answer.status_code >= 400]
    assert len(refused) > 15
    for answer in refused:
        said = f"{answer.text} {dict(answer.headers)}"
        assert not INSIDE.search(said), said
        assert str(folder) not in said
        assert not re.search(rf"\b{running.process.pid}\b", said), said
    running.stop_and_leave_nothing()
