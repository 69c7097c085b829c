import os

import pytest

from ts_frontend.start_report import StartReport


@pytest.fixture
def pipe():
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    yield read_end, write_end
    os.close(read_end)


def test_words_and_the_end_of_file(pipe):
    read_end, write_end = pipe
    report = StartReport(write_end)
    assert not os.get_inheritable(write_end)  # a worker that outlives the server must not hold it
    report.progress("loading 1 of 2 models")
    report.ready("inference http://h:1")
    report.progress("too late")
    assert os.read(read_end, 1000) == (
        b"PROGRESS loading 1 of 2 models\nREADY inference http://h:1\n"
    )
    assert os.read(read_end, 1000) == b""


def test_line_breaks_are_escaped(pipe):
    read_end, write_end = pipe
    StartReport(write_end).failed("a\\b\nc")
    assert os.read(read_end, 1000) == b"FAILED a\\\\b\\nc\n"


def test_nobody_waits():
    StartReport(None).ready("x")


def test_the_waiting_command_is_gone():
    read_end, write_end = os.pipe()
    os.close(read_end)
    report = StartReport(write_end)
    report.progress("x")
    report.close()
