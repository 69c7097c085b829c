"""When a wait begins without sleep."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ts.protocol import wakefulness as module
from ts.protocol.wakefulness import WAITS_PER_LOOK, ProcessorLoad, Wakefulness

PROCESSORS = 4
LONGEST_S = 200e-6
WAITS_TO_LEARN = 13  # the first that leave more than 80 % of short ones: 1 - (7/8)^13


class LoadFile:
    """A /proc/loadavg of our own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.say(1)
        self.descriptor = os.open(path, os.O_RDONLY)

    def say(self, running: int) -> None:
        self.path.write_text(f"0.31 0.27 0.20 {running}/251 14745\n")


@pytest.fixture
def load_file(tmp_path: Path):
    file = LoadFile(tmp_path / "loadavg")
    yield file
    os.close(file.descriptor)


def wait_often(wakefulness: Wakefulness, times: int, seconds: float = 20e-6) -> int:
    """How many of so many waits are without sleep."""
    awake = 0
    for _ in range(times):
        awake += wakefulness.begin_wait()
        wakefulness.waited(seconds)
    return awake


def test_nothing_is_known_before_the_first_wait() -> None:
    assert not Wakefulness(LONGEST_S).begin_wait()


@pytest.mark.parametrize(
    ("waited_s", "awake"), [(20e-6, 100 - WAITS_TO_LEARN), (LONGEST_S, 0), (1.0, 0)]
)
def test_awake_after_short_waits_only(waited_s: float, awake: int) -> None:
    assert wait_often(Wakefulness(LONGEST_S), 100, waited_s) == awake


def test_a_long_wait_now_and_then_does_not_matter() -> None:
    wakefulness = Wakefulness(LONGEST_S)
    wait_often(wakefulness, 100)
    wakefulness.waited(1.0)
    assert wakefulness.begin_wait()
    wakefulness.waited(1.0)
    assert not wakefulness.begin_wait()


def test_asleep_where_every_second_wait_is_long() -> None:
    wakefulness = Wakefulness(LONGEST_S)
    wait_often(wakefulness, 100)
    for _ in range(20):
        wakefulness.waited(1.0)
        wakefulness.waited(1e-6)
    assert not wakefulness.begin_wait()


def test_never_where_the_setting_is_0() -> None:
    wakefulness = Wakefulness.of_this_machine(0.0)
    assert not wakefulness.longest_s
    assert wait_often(wakefulness, 10, 0.0) == 0


def test_sleeps_while_more_want_to_run_than_there_are_processors(load_file: LoadFile) -> None:
    wakefulness = Wakefulness(LONGEST_S, ProcessorLoad(load_file.descriptor, PROCESSORS))
    load_file.say(PROCESSORS)
    assert wait_often(wakefulness, 100) == 100 - WAITS_TO_LEARN
    load_file.say(PROCESSORS + 2)
    wait_often(wakefulness, 10 * WAITS_PER_LOOK)
    assert wait_often(wakefulness, 100) == 0
    load_file.say(2)
    wait_often(wakefulness, 20 * WAITS_PER_LOOK)
    assert wait_often(wakefulness, 100) == 100


def test_a_single_crowded_moment_is_not_a_full_machine(load_file: LoadFile) -> None:
    load = ProcessorLoad(load_file.descriptor, PROCESSORS)
    load_file.say(PROCESSORS + 1)
    load.look()
    assert load.has_free_processor


@pytest.mark.parametrize("text", ["", "0.31 0.27 0.20", "a b c d/e f"])
def test_what_cannot_be_read_is_a_full_machine(load_file: LoadFile, text: str) -> None:
    load = ProcessorLoad(load_file.descriptor, PROCESSORS)
    load_file.path.write_text(text)
    load.look()
    assert not load.has_free_processor
    load_file.say(1)
    for _ in range(20):
        load.look()
    assert load.has_free_processor


def open_load(
    monkeypatch: pytest.MonkeyPatch, load_file: LoadFile, processors: int, quota: Path
) -> ProcessorLoad | None:
    monkeypatch.setattr(module, "LOAD_FILE", str(load_file.path))
    monkeypatch.setattr(module, "QUOTA_FILES", ((str(quota), "max"),))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    return ProcessorLoad.open()


@pytest.mark.parametrize(
    ("processors", "quota", "is_known"),
    [
        (2, None, True),
        (2, "max 100000\n", True),
        (2, "150000 100000\n", False),  # what one worker burns, all others lack
        (1, None, False),
    ],
)
def test_awake_only_where_processor_time_is_plentiful(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    load_file: LoadFile,
    processors: int,
    quota: str | None,
    is_known: bool,
) -> None:
    quota_file = tmp_path / "cpu.max"
    if quota is not None:
        quota_file.write_text(quota)
    load = open_load(monkeypatch, load_file, processors, quota_file)
    assert (load is not None) == is_known
    assert bool(Wakefulness.of_this_machine(LONGEST_S).longest_s) == is_known


def test_never_awake_where_the_load_cannot_be_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "LOAD_FILE", str(tmp_path / "none"))
    assert not Wakefulness.of_this_machine(LONGEST_S).longest_s
