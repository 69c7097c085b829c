"""docs/compatibility.md: what is better by default, and as it was with compatibility=torchserve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import requests
from serving import MODELS, RunningServer, archive, start_server, wait_until

from ts_frontend.dialects.torchserve.grpc_errors import INTERNAL_SERVER
from ts_frontend.grpc.stubs.inference_pb2 import PredictionsRequest
from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub


@pytest.fixture(scope="module", params=["default", "torchserve"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp(request.param)
    archive(folder / "elsewhere", "echo", MODELS / "echo.py")
    (folder / "store").mkdir()
    keys = {"compatibility": "torchserve"} if request.param == "torchserve" else {}
    server = start_server(
        folder / "server",
        folder / "store",
        max_request_size="1000",
        variables={"TZ": "XYZ-5"},  # five hours ahead of UTC
        **keys,
    )
    yield server
    assert server.stop() == 0


@pytest.fixture
def is_torchserve(running: RunningServer) -> bool:
    return running.store.parent.name.startswith("torchserve")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_too_large(
    running: RunningServer, is_torchserve: bool, is_chunked: bool
) -> None:
    body = iter([b"x" * 600, b"x" * 600]) if is_chunked else b"x" * 1200
    answer = requests.post(f"{running.inference}/predictions/echo", data=body, timeout=20)
    assert answer.status_code == 413
    if is_torchserve:
        assert answer.content == b""
    else:
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {
            "code": 413,
            "type": "BadRequestException",
            "message": "The request's body is larger than 1000 bytes (max_request_size).",
        }


def test_the_connection_goes_on_after_a_body_that_is_too_large(running: RunningServer) -> None:
    with requests.Session() as session:
        url = f"{running.inference}/predictions/echo"
        assert session.post(url, data=b"x" * 1200, timeout=20).status_code == 413
        assert session.get(f"{running.inference}/ping", timeout=20).status_code == 200


def test_a_name_that_is_taken_in_the_store(running: RunningServer, is_torchserve: bool) -> None:
    url = f"file://{running.store.parent / 'elsewhere'}/echo.mar"
    assert running.register(url).status_code == 200
    answer = running.register(url)
    assert answer.json()["message"] == "Model file already exists echo.mar"
    wanted = (500, "InternalServerException") if is_torchserve else (409, "ConflictStatusException")
    assert (answer.status_code, answer.json()["type"]) == wanted


def test_the_start_of_a_worker(running: RunningServer, is_torchserve: bool) -> None:
    archive(running.store, "timed", MODELS / "echo.py")
    before = datetime.now(UTC)
    assert running.register("timed.mar", initial_workers=1).status_code == 200
    (worker,) = running.describe("timed")["workers"]
    started = datetime.fromisoformat(worker["startTime"])
    hours = round((started - before) / timedelta(hours=1))
    assert hours == (5 if is_torchserve else 0)


def test_metrics_in_log_mode(running: RunningServer, is_torchserve: bool) -> None:
    answer = requests.get(f"{running.metrics}/metrics", timeout=20)
    assert answer.status_code == 200
    assert (answer.text == "") is is_torchserve


def configured(running: RunningServer, name: str, handler: str, text: str) -> None:
    """An archive with a model-config.yaml of that text, in the store."""
    config = running.store.parent / f"{name}.yaml"
    config.write_text(text)
    archive(running.store, name, MODELS / handler, config_file=str(config))


def test_why_a_worker_does_not_start(running: RunningServer, is_torchserve: bool) -> None:
    archive(running.store, "broken", MODELS / "fails_on_import.py")
    answer = running.register("broken.mar", initial_workers=1)
    assert (answer.status_code, answer.json()["type"]) == (500, "InternalServerException")
    bare = "Failed to start workers for model broken version: 1.0"
    message = answer.json()["message"]
    if is_torchserve:
        assert message == bare
    else:
        assert message.startswith(f"{bare}: ")
        assert "ModuleNotFoundError: No module named 'a_package_that_nobody_has'" in message


def test_sequences_at_the_same_time(running: RunningServer, is_torchserve: bool) -> None:
    text = "batchSize: 4\nsequenceBatching: true\nsequenceMaxIdleMSec: 60000\n"
    configured(running, "sequences", "sums_sequences.py", text)
    assert running.register("sequences.mar").status_code == 200
    assert running.describe("sequences")["maxNumSequence"] == (1 if is_torchserve else 4)


def test_a_model_that_nobody_knows_over_grpc(running: RunningServer, is_torchserve: bool) -> None:
    with grpc.insecure_channel(running.grpc_inference) as channel:
        stub = InferenceAPIsServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failed:
            stub.Predictions(PredictionsRequest(model_name="nobody"), timeout=20)
    assert failed.value.code().name == ("INTERNAL" if is_torchserve else "NOT_FOUND")
    assert failed.value.details() == (
        "Model not found: nobody\norg.pytorch.serve.archive.model.ModelNotFoundException"
    )


def test_a_status_of_the_handler_over_grpc(running: RunningServer, is_torchserve: bool) -> None:
    archive(running.store, "teapot", MODELS / "teapot.py")
    assert running.register("teapot.mar", initial_workers=1).status_code == 200
    with grpc.insecure_channel(running.grpc_inference) as channel:
        call = InferenceAPIsServiceStub(channel).Predictions.future(
            PredictionsRequest(model_name="teapot", input={"data": b""}), timeout=20
        )
        assert call.code().name == ("OK" if is_torchserve else "FAILED_PRECONDITION")
        if is_torchserve:
            assert call.result().prediction == b"short and stout"
        else:
            assert call.details() == f"short and stout\n{INTERNAL_SERVER}"


def test_metadata_of_a_call(running: RunningServer, is_torchserve: bool) -> None:
    archive(running.store, "metadata", MODELS / "context_probe.py")
    assert running.register("metadata.mar", initial_workers=1).status_code == 200
    with grpc.insecure_channel(running.grpc_inference) as channel:
        answer = InferenceAPIsServiceStub(channel).Predictions(
            PredictionsRequest(model_name="metadata", input={"data": b"x"}),
            metadata=(("x-tenant", "blue"),),
            timeout=20,
        )
    seen = json.loads(answer.prediction)["headers"]
    assert seen == ({} if is_torchserve else {"x-tenant": "blue"})


# The same under both settings: nobody can rely on what TorchServe does here.


def test_a_client_timeout_is_told(running: RunningServer) -> None:
    configured(running, "impatient", "sleeps.py", "clientTimeoutInMills: 200\n")
    assert running.register("impatient.mar", initial_workers=1).status_code == 200
    answer = running.predict("impatient", b"5")
    assert answer.status_code == 408
    assert answer.json()["type"] == "RequestTimeoutException"


def test_a_query_reaches_the_handler(running: RunningServer) -> None:
    archive(running.store, "context_probe", MODELS / "context_probe.py")
    assert running.register("context_probe.mar", initial_workers=1).status_code == 200
    answer = running.predict("context_probe", b"x", params={"top": "3"})
    assert answer.json()["headers"]["url_query"] == "top=3"


def test_there_are_no_workflows(running: RunningServer) -> None:
    answer = requests.post(f"{running.management}/workflows?url=x.war", timeout=20)
    assert answer.status_code == 404
    assert answer.json()["type"] == "ResourceNotFoundException"


def test_each_line_is_in_one_file_and_on_stdout(running: RunningServer) -> None:
    requests.get(f"{running.inference}/predictions/marked-line", timeout=20)
    logs = running.folder / "logs"

    def count(path: Path) -> int:
        return path.read_text().count('"GET /predictions/marked-line HTTP/1.1"')

    wait_until(lambda: count(running.log), what="the line on stdout")
    wait_until(lambda: count(logs / "access_log.log"), what="the line in its file")
    counts = {path.name: count(path) for path in (running.log, *logs.glob("*.log"))}
    assert {name for name, times in counts.items() if times} == {"server.log", "access_log.log"}
    assert counts["server.log"] == counts["access_log.log"] == 1
