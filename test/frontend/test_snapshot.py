"""Snapshots as text and as files."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest

from ts_frontend.settings import format_properties
from ts_frontend.settings.properties import parse_properties
from ts_frontend.snapshot import (
    InvalidSnapshot,
    ModelSnapshot,
    SnapshotFolder,
    SnapshotWriter,
    format_models,
    parse_models,
)

ECHO = ModelSnapshot("echo", "1.0", "echo.mar", is_default=True, min_workers=1, max_workers=2)
BIG = ModelSnapshot("big", "2.0", "big.mar", parallel_level=2, batch_size=8, runtime="python3")

# As TorchServe 0.12 writes it.
THEIRS = """{
  "name": "20261121095456110-startup.cfg",
  "modelCount": 1,
  "created": 1795254896134,
  "models": {
    "echo": {
      "1.0": {
        "defaultVersion": true,
        "marName": "echo.mar",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 1,
        "maxBatchDelay": 100,
        "responseTimeout": 120,
        "startupTimeout": 120,
        "runtimeType": "python"
      }
    }
  }
}"""


def test_the_text_is_theirs() -> None:
    model = ModelSnapshot("echo", "1.0", "echo.mar", True, 1, 1)
    text = format_models([model], "20261121095456110-startup.cfg", 1795254896.134)
    assert text == THEIRS
    assert parse_models(THEIRS) == [model]


def test_the_text_reads_back() -> None:
    assert parse_models(format_models([ECHO, BIG], "x", 0)) == [ECHO, BIG]
    assert parse_models(format_models([], "x", 0)) == []


def test_what_a_person_leaves_out() -> None:
    entry = {"marName": "m.mar", "minWorkers": 3, "defaultVersion": True}
    (model,) = parse_models(json.dumps({"models": {"m": {"1.0": entry}}}))
    assert model == ModelSnapshot("m", "1.0", "m.mar", True, 3, 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "an object with the object `models`"),
        ('{"models": []}', "an object with the object `models`"),
        ('{"models": {"m": 1}}', "m: an object of versions"),
        ('{"models": {"m": {"1": 1}}}', "m 1: an object with a marName"),
        ('{"models": {"m": {"1": {"marName": 1}}}}', "m 1: an object with a marName"),
        ('{"models": {"m": {"1": {"marName": "x", "batchSize": "2"}}}}', "m 1: batchSize should"),
        ('{"models": {"m": {"1": {"marName": "x", "minWorkers": -1}}}}', "at least 0"),
    ],
)
def test_a_text_that_is_none(text: str, reason: str) -> None:
    with pytest.raises(InvalidSnapshot, match=reason):
        parse_models(text)


class Clock:
    now = datetime(2024, 5, 1, 12, 0, 0, 123000).timestamp()

    def __call__(self) -> float:
        return self.now


def snapshots(path: Path, **options: object) -> SnapshotFolder:
    return SnapshotFolder(str(path / "config"), format_properties, now=Clock(), **options)  # type: ignore[arg-type]


def test_a_file(tmp_path: Path) -> None:
    folder = snapshots(tmp_path)
    path = Path(folder.write("startup", {"model_store": "/a=b"}, [ECHO]))
    assert path.name == "20240501120000123-startup.cfg"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    values = {entry.key: entry.value for entry in parse_properties(path.read_text())}
    assert values["model_store"] == "/a=b"
    assert parse_models(values["model_snapshot"]) == [ECHO]
    assert json.loads(values["model_snapshot"])["name"] == path.name
    assert os.listdir(path.parent) == [path.name]


def test_later_ones_have_later_names_whatever_the_clock_says(tmp_path: Path) -> None:
    clock = Clock()
    folder = SnapshotFolder(str(tmp_path), format_properties, now=clock)
    folder.write("startup", {}, [])
    folder.write("snapshot", {}, [])
    clock.now -= 3600  # summer time ends
    folder.write("shutdown", {}, [])
    assert folder.names() == [
        "20240501120000123-startup.cfg",
        "20240501120000124-snapshot.cfg",
        "20240501120000125-shutdown.cfg",
    ]


def test_old_ones_go(tmp_path: Path) -> None:
    folder = snapshots(tmp_path, keep=3)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.cfg").touch()
    written = [os.path.basename(folder.write("snapshot", {}, [])) for _ in range(5)]
    assert folder.names() == written[2:]
    assert (tmp_path / "config" / "mine.cfg").exists()


@pytest.mark.parametrize("is_link", [True, False])
def test_a_file_that_somebody_has_prepared_is_not_written_to(tmp_path: Path, is_link: bool) -> None:
    folder = snapshots(tmp_path)
    config = tmp_path / "config"
    config.mkdir()
    theirs = tmp_path / "theirs"
    theirs.touch(0o666)
    prepared = config / f".20240501120000123-startup.cfg.{os.getpid()}.tmp"
    if is_link:
        prepared.symlink_to(theirs)
    else:
        os.link(theirs, prepared)
    path = folder.write("startup", {"keystore_pass": "secret"}, [])
    assert theirs.read_text() == ""
    assert not os.path.islink(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = snapshots(tmp_path)
    folder.write("startup", {}, [])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write("snapshot", {}, [])
    assert len(os.listdir(folder.path)) == 1


class Recorder(SnapshotFolder):
    def __init__(self) -> None:
        self.path = "/logs/config"
        self.written: list[tuple[str, int]] = []
        self.is_broken = False

    def write(self, kind: str, properties: Mapping[str, str], models: object) -> str:
        if self.is_broken:
            raise OSError(28, "No space left on device")
        self.written.append((kind, len(models)))  # type: ignore[arg-type]
        return kind


async def test_changes_that_come_together_share_one_file() -> None:
    folder = Recorder()
    models = [ECHO]
    writer = SnapshotWriter(folder, lambda: ({}, list(models)))
    writer.note_change()
    models.append(BIG)
    writer.note_change()
    await writer.write("shutdown")
    assert folder.written == [("snapshot", 2), ("shutdown", 2)]


async def test_a_change_during_a_write_gets_its_own() -> None:
    folder = Recorder()
    writer = SnapshotWriter(folder, lambda: ({}, []))
    writer.note_change()
    await asyncio.sleep(0)  # the first takes its content now
    writer.note_change()
    await writer.write("shutdown")
    assert [kind for kind, _ in folder.written] == ["snapshot", "snapshot", "shutdown"]


async def test_a_full_disk_is_an_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    folder = Recorder()
    folder.is_broken = True
    await SnapshotWriter(folder, lambda: ({}, [])).write("startup")
    assert "Cannot write a snapshot to /logs/config: No space left on device" in caplog.text
