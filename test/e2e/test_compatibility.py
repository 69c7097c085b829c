"""docs/compatibility.md: what is better by default, and as it was with compatibility=torchserve."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import requests
from serving import MODELS, RunningServer, archive, start_server


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
