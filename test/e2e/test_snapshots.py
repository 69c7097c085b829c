"""A server that goes on where the last one stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving import MODELS, RunningServer, archive, start_server, wait_until

from ts_frontend.settings.properties import parse_properties
from ts_frontend.snapshot import ModelSnapshot, parse_models


def snapshots(server: RunningServer) -> list[Path]:
    """Oldest first."""
    return sorted((server.folder / "logs" / "config").glob("*.cfg"))


def properties(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in parse_properties(path.read_text())}


def models(path: Path) -> list[ModelSnapshot]:
    return parse_models(properties(path)["model_snapshot"])


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    archive(store, "echo", MODELS / "echo.py")
    archive(store, "echo", MODELS / "echo.py", version="2.0", file_name="echo_2")
    archive(store, "doubles", MODELS / "doubles.py")
    return store


@pytest.fixture
def stopped(filled: Path, tmp_path: Path) -> RunningServer:
    """A server that had three versions, was changed in each way that leaves a snapshot, and ended.

    After it: echo 1.0 with no worker, echo 2.0 with two and the default, doubles unregistered.
    """
    running = start_server(
        tmp_path / "server", filled, has_snapshots=True, job_queue_size="77", my_own="x"
    )

    def change(action, *, changed: int) -> None:
        answer = action()
        assert answer.status_code == 200, answer.text
        wait_until(lambda: len(snapshots(running)) == changed, 20, "a snapshot of the change")

    session, management = running.session, running.management
    change(lambda: running.register("echo.mar"), changed=2)
    change(lambda: running.register("echo_2.mar", batch_size=4, max_batch_delay=50), changed=3)
    change(
        lambda: session.put(
            f"{management}/models/echo/2.0?min_worker=2&synchronous=true", timeout=60
        ),
        changed=4,
    )
    change(lambda: session.put(f"{management}/models/echo/2.0/set-default", timeout=20), changed=5)
    change(lambda: running.register("doubles.mar"), changed=6)
    change(lambda: session.delete(f"{management}/models/doubles", timeout=20), changed=7)
    assert running.stop() == 0
    return running


def test_what_is_written_when(stopped: RunningServer) -> None:
    written = snapshots(stopped)
    kinds = [path.stem.partition("-")[2] for path in written]
    assert kinds == ["startup", *["snapshot"] * 6, "shutdown"]
    assert [len(models(path)) for path in written] == [0, 1, 2, 2, 2, 3, 2, 2]
    last = properties(written[-1])
    assert last["job_queue_size"] == "77"
    assert last["my_own"] == "x"
    assert last["version"]
    # What only the flags of that start opened is not kept.
    assert "disable_token_authorization" not in last
    assert "enable_model_api" not in last
    first, second = models(written[-1])
    assert (first.version, first.is_default, first.min_workers) == ("1.0", False, 0)
    assert (second.version, second.is_default, second.min_workers) == ("2.0", True, 2)
    assert (second.batch_size, second.max_batch_delay_ms) == (4, 50)


def test_the_next_start_goes_on(stopped: RunningServer, filled: Path) -> None:
    running = start_server(stopped.folder, filled, goes_on=True, flags=("--models", "doubles.mar"))
    try:
        running.wait_ready("echo", 2)
        described = running.describe("echo")
        assert described["modelVersion"] == "2.0"
        assert described["batchSize"] == 4
        assert described["maxBatchDelay"] == 50
        assert described["loadedAtStartup"] is False
        assert running.predict("echo", b"x").content == b"x"
        answer = running.session.get(f"{running.management}/models/echo/1.0", timeout=20).json()
        assert answer[0]["workers"] == []
        # `--models` is not used where a snapshot says what to load.
        listed = running.session.get(f"{running.management}/models", timeout=20).json()
        assert [model["modelName"] for model in listed["models"]] == ["echo"]
        assert "shutdown.cfg" in running.log.read_text()
    finally:
        assert running.stop() == 0
    assert models(snapshots(running)[-1]) == models(snapshots(stopped)[-1])


def test_a_missing_archive_does_not_stop_the_rest(stopped: RunningServer, filled: Path) -> None:
    """TorchServe does not start at all then."""
    (filled / "echo_2.mar").rename(filled / "away")
    running = start_server(stopped.folder, filled, goes_on=True)
    try:
        assert running.describe("echo")["modelVersion"] == "1.0"
        assert "echo version 2.0 of the snapshot could not be restored" in running.log.read_text()
    finally:
        assert running.stop() == 0
    # It is not forgotten: when the archive is back, so is the model.
    (filled / "away").rename(filled / "echo_2.mar")
    running = start_server(stopped.folder, filled, goes_on=True)
    try:
        running.wait_ready("echo", 2)
        assert running.describe("echo")["modelVersion"] == "2.0"
    finally:
        assert running.stop() == 0


def test_what_is_missing_can_be_forgotten(stopped: RunningServer, filled: Path) -> None:
    (filled / "echo_2.mar").unlink()
    running = start_server(stopped.folder, filled, goes_on=True)
    gone = running.session.delete(f"{running.management}/models/echo/2.0", timeout=20)
    assert gone.status_code == 404
    assert running.stop() == 0
    assert [model.version for model in models(snapshots(running)[-1])] == ["1.0"]


def test_a_missing_archive_stops_a_compatible_server(tmp_path: Path, filled: Path) -> None:
    text = '{"models": {"m": {"1.0": {"marName": "gone.mar"}}}}'
    with pytest.raises(pytest.fail.Exception, match=r"gone\.mar not found in the model store"):
        start_server(tmp_path / "server", filled, model_snapshot=text, compatibility="torchserve")


def test_models_declared_by_hand_are_restored_without_snapshots(
    tmp_path: Path, filled: Path
) -> None:
    """KServe's way to say which models to serve: `model_snapshot` in the file, also with --ncs."""
    text = (
        '{"name": "startup.cfg", "modelCount": 1, "models": {"mine": {"1.0": {"defaultVersion": '
        'true, "marName": "echo.mar", "minWorkers": 1, "maxWorkers": 5, "batchSize": 1, '
        '"maxBatchDelay": 5000, "responseTimeout": 120}}}}'
    )
    running = start_server(tmp_path / "server", filled, model_snapshot=text)
    try:
        running.wait_ready("mine")
        assert running.describe("mine")["maxBatchDelay"] == 5000
        assert snapshots(running) == []
    finally:
        assert running.stop() == 0
    assert snapshots(running) == []


def test_a_snapshot_that_is_none_stops_the_start(tmp_path: Path, filled: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"not JSON.*model_snapshot in .*:\d+"):
        start_server(tmp_path / "server", filled, model_snapshot="{")
