"""The management API over HTTP: keys, texts and codes as TorchServe's clients know them."""

from __future__ import annotations

from pathlib import Path

import pytest
from openapi_spec_validator import validate
from serving import MODELS, RunningServer, archive, wait_until


@pytest.fixture(scope="module", autouse=True)
def models(store: Path, server: RunningServer) -> None:
    archive(store, "echo", MODELS / "echo.py")
    archive(store, "echo", MODELS / "echo.py", version="2.0", file_name="echo_2")
    archive(store, "broken", MODELS / "fails_on_import.py")
    archive(store, "refuses", MODELS / "fails_on_load.py")


def forget(server: RunningServer, name: str) -> None:
    server.session.delete(f"{server.management}/models/{name}", timeout=60)


def test_register_describe_scale_unregister(server: RunningServer) -> None:
    answer = server.register("echo.mar")
    assert answer.json()["status"] == (
        'Model "echo" Version: 1.0 registered with 0 initial workers. '
        "Use scale workers API to add workers for the model."
    )
    assert server.predict("echo", b"x").json()["type"] == "ServiceUnavailableException"

    scaled = server.session.put(
        f"{server.management}/models/echo",
        params={"min_worker": 2, "synchronous": "true"},
        timeout=60,
    )
    assert (scaled.status_code, scaled.json()) == (
        200,
        {"status": "Workers scaled to 2 for model: echo"},
    )
    described = server.describe("echo")
    assert list(described) == [
        *("modelName", "modelVersion", "modelUrl", "runtime", "minWorkers", "maxWorkers"),
        *("batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout"),
        *("maxRetryTimeoutInSec", "clientTimeoutInMills", "parallelType", "parallelLevel"),
        *("deviceType", "continuousBatching", "useJobTicket", "useVenv", "stateful"),
        *("sequenceMaxIdleMSec", "sequenceTimeoutMSec", "maxNumSequence"),
        *("maxSequenceJobQueueSize", "loadedAtStartup", "workers", "jobQueueStatus"),
    ]
    assert [worker["status"] for worker in described["workers"]] == ["READY", "READY"]
    assert all(worker["memoryUsage"] > 1_000_000 for worker in described["workers"])

    asynchronous = server.session.put(
        f"{server.management}/models/echo", params={"min_worker": 1, "max_worker": 1}, timeout=60
    )
    assert (asynchronous.status_code, asynchronous.json()) == (
        202,
        {"status": "Processing worker updates..."},
    )
    wait_until(lambda: len(server.worker_pids("echo")) == 1, what="one worker")
    assert worker_gauges(server, "echo")
    gone = server.session.delete(f"{server.management}/models/echo", timeout=60)
    assert (gone.status_code, gone.json()) == (200, {"status": 'Model "echo" unregistered'})
    assert server.predict("echo", b"x").status_code == 404
    assert not worker_gauges(server, "echo")


def worker_gauges(server: RunningServer, model: str) -> list[str]:
    text = server.session.get(f"{server.metrics}/metrics", timeout=20).text
    lines = [line for line in text.splitlines() if line.startswith("ts_workers{")]
    return [line for line in lines if f'model_name="{model}"' in line]


def test_versions_and_the_default_one(server: RunningServer) -> None:
    server.register("echo.mar")
    server.register("echo_2.mar")
    try:
        conflict = server.register("echo.mar")
        assert (conflict.status_code, conflict.json()["type"]) == (409, "ConflictStatusException")
        every = server.session.get(f"{server.management}/models/echo/all", timeout=20).json()
        assert sorted(one["modelVersion"] for one in every) == ["1.0", "2.0"]
        refused = server.session.delete(f"{server.management}/models/echo", timeout=20)
        assert refused.status_code == 403
        assert refused.json()["message"] == "Cannot remove default version for model echo"
        moved = server.session.put(f"{server.management}/models/echo/2.0/set-default", timeout=20)
        assert moved.json() == {
            "status": 'Default version successfully updated for model "echo" to "2.0"'
        }
        assert server.describe("echo")["modelVersion"] == "2.0"
        unknown = server.session.put(f"{server.management}/models/echo/9/set-default", timeout=20)
        assert unknown.json()["message"] == "Model version 9 does not exist for model echo"
    finally:
        forget(server, "echo/1.0")
        forget(server, "echo")


def test_listing_pages(server: RunningServer) -> None:
    names = [f"m{number}" for number in range(3)]
    for name in names:
        server.register("echo.mar", model_name=name)
    try:
        first = server.session.get(f"{server.management}/models?limit=2", timeout=20).json()
        assert [model["modelName"] for model in first["models"]] == names[:2]
        rest = server.session.get(
            f"{server.management}/models?limit=2&next_page_token={first['nextPageToken']}",
            timeout=20,
        ).json()
        assert [model["modelName"] for model in rest["models"]] == names[2:]
        assert "nextPageToken" not in rest
    finally:
        for name in names:
            forget(server, name)


@pytest.mark.parametrize(
    ("parameters", "status", "type_name", "message"),
    [
        ({}, 400, "BadRequestException", "Parameter url is required."),
        ({"url": ""}, 404, "ModelNotFoundException", "empty url"),
        (
            {"url": "../echo.mar"},
            404,
            "ModelNotFoundException",
            "Relative path is not allowed in url: ../echo.mar",
        ),
        ({"url": "no.mar"}, 404, "ModelNotFoundException", "Model not found at: no.mar"),
        (
            {"url": "echo.mar", "runtime": "ruby"},
            400,
            "BadRequestException",
            "Invalid RuntimeType value: ruby",
        ),
    ],
)
def test_bad_registrations(
    server: RunningServer,
    parameters: dict[str, str],
    status: int,
    type_name: str,
    message: str,
) -> None:
    answer = server.session.post(f"{server.management}/models", params=parameters, timeout=20)
    assert answer.json() == {"code": status, "type": type_name, "message": message}


def test_a_json_body_registers_too(server: RunningServer) -> None:
    answer = server.session.post(
        f"{server.management}/models",
        data="{'url': 'echo.mar', 'initial_workers': '1'}",  # lenient, as TorchServe's reader
        headers={"content-type": "application/json"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert server.describe("echo")["maxBatchDelay"] == 100
    forget(server, "echo")


def test_a_worker_that_dies_while_loading_takes_its_model_along(server: RunningServer) -> None:
    before = sorted(path.name for path in server.folder.rglob("*") if "models" in path.parts)
    answer = server.register("broken.mar", initial_workers=1)
    body = answer.json()
    message = body.pop("message")
    assert body == {"code": 500, "type": "InternalServerException"}
    assert message.startswith("Failed to start workers for model broken version: 1.0: ")
    assert message.endswith(
        "(exit code 1): ModuleNotFoundError: No module named 'a_package_that_nobody_has'"
    )
    unknown = server.session.get(f"{server.management}/models/broken", timeout=20)
    assert unknown.status_code == 404
    after = sorted(path.name for path in server.folder.rglob("*") if "models" in path.parts)
    assert after == before


def test_a_model_that_its_worker_refuses_stays_without_workers(server: RunningServer) -> None:
    answer = server.register("refuses.mar", initial_workers=1)
    assert answer.status_code == 500
    assert server.describe("refuses")["workers"] == []
    forget(server, "refuses")


def test_wrong_methods_and_paths(server: RunningServer) -> None:
    wrong = server.session.patch(f"{server.management}/models", timeout=20)
    assert wrong.json() == {
        "code": 405,
        "type": "MethodNotAllowedException",
        "message": "Requested method is not allowed, please refer to API document.",
    }
    lost = server.session.get(f"{server.management}/nowhere", timeout=20)
    assert lost.json() == {
        "code": 404,
        "type": "ResourceNotFoundException",
        "message": "Requested resource is not found, please refer to API document.",
    }
    assert server.session.get(f"{server.inference}/predictions", timeout=20).status_code == 404


@pytest.mark.parametrize("listener", ["inference", "management", "metrics"])
def test_the_descriptions_are_valid_openapi(server: RunningServer, listener: str) -> None:
    document = server.session.options(f"{getattr(server, listener)}/", timeout=20).json()
    validate(document)
    assert document["openapi"] == "3.0.1"
    assert document["info"]["title"] == "TorchServe APIs"
    page = server.session.get(f"{getattr(server, listener)}/api-description", timeout=20)
    assert page.json() == document
    assert ("/v1/models" in document["paths"]) == (listener != "metrics")
    assert ("/v1/models/{model_name}:predict" in document["paths"]) == (listener == "inference")


def test_ping_and_kserve_status(server: RunningServer) -> None:
    assert server.session.get(f"{server.inference}/ping", timeout=20).json() == {
        "status": "Healthy"
    }
    server.register("echo.mar")
    status = server.session.get(f"{server.management}/v1/models/echo", timeout=20)
    assert status.json() == {"name": "echo", "ready": False}
    forget(server, "echo")


def test_serve_2907_metrics_are_counted(server: RunningServer) -> None:
    server.register("echo.mar", initial_workers=1)
    server.predict("echo", b"x")
    assert server.requests_to("echo") >= 1
    forget(server, "echo")
