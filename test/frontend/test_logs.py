"""Log lines when there is no room: for the files on the disk, or for the lines in memory."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import wait_until

from ts_frontend import logs
from ts_frontend.logs import ServerLogs

logger = logging.getLogger("a.server.room")


@contextlib.contextmanager
def written_to(folder: Path, stdout: io.StringIO) -> Iterator[ServerLogs]:
    """The logs of a server, all written when the block ends; the root logger is then as it was."""
    root = logging.getLogger()
    level = root.level
    with contextlib.redirect_stdout(stdout):
        server_logs = ServerLogs(str(folder), str(folder))
    try:
        yield server_logs
    finally:
        server_logs.close()
        root.setLevel(level)


def test_lines_reach_their_file_and_stdout(tmp_path: Path) -> None:
    stdout = io.StringIO()
    with written_to(tmp_path, stdout):
        logger.info("of the server")
        logging.getLogger("MODEL_LOG").info("of a model")
    assert (tmp_path / "ts_log.log").read_text().endswith("main a.server.room - of the server\n")
    assert (tmp_path / "model_log.log").read_text().endswith("MODEL_LOG - of a model\n")
    assert len(stdout.getvalue().splitlines()) == 2


def test_a_full_disk_is_reported_once_and_costs_only_its_lines(tmp_path: Path, capfd) -> None:
    os.symlink("/dev/full", tmp_path / "ts_log.log")
    stdout = io.StringIO()
    with written_to(tmp_path, stdout) as server_logs:
        for number in range(100):
            logger.info("line %d", number)
        logging.getLogger("MODEL_LOG").info("of a model")
        wait_until(lambda: server_logs.waiting_chars == 0, what="the end of the queue")
    lines = stdout.getvalue().splitlines()
    complaints = [line for line in lines if "No space left on device" in line]
    assert len(complaints) == 1
    assert "its lines are lost until that is mended" in complaints[0]
    assert sum("line " in line for line in lines) == 100
    assert "of a model" in (tmp_path / "model_log.log").read_text()
    assert capfd.readouterr().err == ""


class HeldBack(io.StringIO):
    """A place that takes nothing until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        assert self.go_on.wait(20)
        return super().write(text)


def test_lines_that_come_too_fast_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING_CHARS", 1_000_000)
    stdout = HeldBack()
    with written_to(tmp_path, stdout) as server_logs:
        for number in range(40):
            logger.info("%d %s", number, "x" * 50_000)
        assert server_logs.waiting_chars < 1_200_000
        stdout.go_on.set()
        wait_until(lambda: server_logs.waiting_chars == 0, what="the end of the queue")
        logger.info("the last one")
    lines = stdout.getvalue().splitlines()
    kept = sum("xxx" in line for line in lines)
    assert 15 < kept < 25
    assert f"{40 - kept} log records came too fast and were dropped." in lines[-2]
    assert lines[-1].endswith("the last one")
