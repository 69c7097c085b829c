"""Whole lines, in order, at once where somebody waits for them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import pytest

from ts.utils import worker_output
from ts.utils.worker_output import LineHandler, LineWriter


class Pipe:
    """What has been written so far, without waiting."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)

    def read(self) -> str:
        try:
            return os.read(self.reading, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def wait(self) -> str:
        os.set_blocking(self.reading, True)
        return os.read(self.reading, 1 << 20).decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reading)
    os.close(made.writing)


@pytest.fixture
def logger(pipe: Pipe) -> Iterator[logging.Logger]:
    made = logging.Logger("of one test", logging.INFO)
    handler = LineHandler(LineWriter(pipe.writing))
    handler.setFormatter(logging.Formatter("%(message)s"))
    made.addHandler(handler)
    yield made
    handler.flush()


def test_a_line_is_written_at_once(pipe):
    LineWriter(pipe.writing).write_line("hello")
    assert pipe.read() == "hello\n"


def test_lines_that_may_wait_do(pipe, monkeypatch):
    monkeypatch.setattr(worker_output, "GATHER_S", 3600)
    writer = LineWriter(pipe.writing)
    writer.write_line_soon("a")
    writer.write_line_soon("b")
    assert pipe.read() == ""
    writer.write_line("c")
    assert pipe.read() == "a\nb\nc\n"


def test_lines_that_wait_come_by_themselves(pipe, monkeypatch):
    monkeypatch.setattr(worker_output, "GATHER_S", 0)
    writer = LineWriter(pipe.writing)
    for line in ("a", "b"):
        writer.write_line_soon(line)
        assert pipe.wait() == f"{line}\n"


def test_many_lines_do_not_wait(pipe, monkeypatch):
    monkeypatch.setattr(worker_output, "GATHER_S", 3600)
    monkeypatch.setattr(worker_output, "GATHER_CHARS", 10)
    writer = LineWriter(pipe.writing)
    writer.write_line_soon("123456")
    assert pipe.read() == ""
    writer.write_line_soon("123456")
    assert pipe.read() == "123456\n123456\n"


def test_no_line_is_lost_or_torn_between_threads(pipe):
    writer = LineWriter(pipe.writing)
    count = 2000
    found = []

    def write(name: str) -> None:
        for number in range(count):
            (writer.write_line_soon if number % 7 else writer.write_line)(f"{name} {number}")

    def read() -> None:
        rest = ""
        while len(found) < 4 * count:
            *lines, rest = (rest + pipe.wait()).split("\n")
            found.extend(lines)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    reader = threading.Thread(target=read)
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    writer.flush()
    reader.join()
    assert sorted(found) == sorted(f"{name} {i}" for name in "abcd" for i in range(count))
    for name in "abcd":
        own = [line for line in found if line.startswith(name)]
        assert own == [f"{name} {i}" for i in range(count)]


def test_a_reader_that_has_gone_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(writing)
    writer.write_line("nobody hears")
    os.close(writing)


def test_log_records_are_lines_of_their_message(pipe, logger):
    logger.info("hello %s", "you")
    logger.debug("not this")
    logger.warning("é \ud800")
    assert pipe.read() == "hello you\né \\ud800\n"


def test_records_of_metrics_may_wait_and_errors_about_them_do_not(pipe, logger, monkeypatch):
    monkeypatch.setattr(worker_output, "GATHER_S", 3600)
    logger.info("[METRICS]a.Count:1")
    assert pipe.read() == ""
    logger.error("[METRICS]Failed to update")
    assert pipe.read() == "[METRICS]a.Count:1\n[METRICS]Failed to update\n"


def test_tracebacks_follow_their_message(pipe, logger):
    try:
        raise ValueError("mine")
    except ValueError:
        logger.exception("It failed:")
    lines = pipe.read().splitlines()
    assert lines[0] == "It failed:"
    assert lines[-1] == "ValueError: mine"


def test_metrics_lines_go_through_logging_outside_of_a_worker(caplog):
    caplog.set_level(logging.INFO)
    worker_output.write_metrics_line("[METRICS]a.Count:1")
    assert caplog.messages == ["[METRICS]a.Count:1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_writes_only_its_own_lines(pipe, monkeypatch):
    monkeypatch.setattr(worker_output, "GATHER_S", 3600)
    writer = LineWriter(pipe.writing)
    writer.write_line_soon("the parent's")
    child = os.fork()
    if not child:
        writer.write_line("the child's")
        os._exit(0)
    os.waitpid(child, 0)
    assert pipe.read() == "the child's\n"
    writer.flush()
    assert pipe.read() == "the parent's\n"
