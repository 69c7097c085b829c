"""One process: what it prints, how it ends, and that it ends with all it has started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from fakes import turns, wait_until
from worker_bench import is_running

from ts_frontend.workers import process as process_module
from ts_frontend.workers.process import KEPT_LINES, MAX_LINE_BYTES, WorkerProcess

Start = Callable[..., "contextlib.AbstractAsyncContextManager[Printing]"]


class Printing:
    """A process of a shell script together with what it printed, by stream."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.process: WorkerProcess

    def take(self, stream: str, line: str) -> None:
        self.lines[stream].append(line)


@contextlib.asynccontextmanager
async def running(script: str, folder: Path) -> AsyncIterator[Printing]:
    printing = Printing()
    printing.process = await WorkerProcess.start(
        ["/bin/sh", "-c", script], {"PATH": os.environ["PATH"]}, str(folder), printing.take
    )
    try:
        yield printing
    finally:
        await printing.process.aclose()
        assert not is_running(printing.process.pid)


# Lines that say that the worker listens, and lines that only look so.
STARTED = [
    ("Torch worker started.", True),
    ("INFO > Torch worker started.", True),
    ("2024-01-01 12:00 [INFO ] main - Torch worker started.", True),
    ("Torch worker started. Almost.", False),
    ("Torch worker starting.", False),
    ("Torch worker started!", False),
]


@pytest.mark.parametrize("redirect", ["", ">&2"])
@pytest.mark.parametrize(("line", "is_started"), STARTED)
async def test_the_line_that_says_it_listens(
    line: str, is_started: bool, redirect: str, tmp_path: Path
) -> None:
    end = "exec sleep 600" if is_started else "exit 0"
    async with running(f"echo '{line}' {redirect}; {end}", tmp_path) as worker:
        assert await worker.process.wait_listening() is is_started


# Not on uvloop: its child processes hold a second descriptor of each stream.
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("stream", ["1", "2"])
async def test_a_closed_stream_is_no_worker(stream: str, tmp_path: Path) -> None:
    async with running(f"exec {stream}>&-; exec sleep 600", tmp_path) as worker:
        assert await worker.process.wait_listening() is False
        assert worker.process.return_code is None


PIDS = [
    ("[PID]4711", 4711),
    ("INFO > [PID]4711", 4711),
    ("see [PID]4711", None),
    ("[PID]4711 ", None),
    ("[PID]x", None),
]


@pytest.mark.parametrize(("line", "pid"), PIDS)
async def test_the_pid_that_the_worker_reports(line: str, pid: int | None, tmp_path: Path) -> None:
    script = f"echo '{line}'; echo 'Torch worker started.'; echo '[PID]1'; exec sleep 600"
    async with running(script, tmp_path) as worker:
        await worker.process.wait_listening()
        assert worker.process.reported_pid == (pid or worker.process.pid)


async def test_both_streams_are_read_line_by_line(tmp_path: Path) -> None:
    script = r"printf 'a\r\n\nb\n'; printf 'x\ny' >&2; printf 'no end'"
    async with running(script, tmp_path) as worker:
        await worker.process.wait_ended(20)
    assert worker.lines == {"stdout": ["a", "", "b", "no end"], "stderr": ["x", "y"]}


async def test_bytes_that_are_no_text_do_not_stop_the_reading(tmp_path: Path) -> None:
    async with running(r"printf '\377\376\nnext\n'", tmp_path) as worker:
        await worker.process.wait_ended(20)
    assert worker.lines["stdout"] == ["\ufffd\ufffd", "next"]


@pytest.mark.parametrize("size", [MAX_LINE_BYTES - 1, MAX_LINE_BYTES, 300_001])
@pytest.mark.parametrize("end", ["", r"\n", r"\nnext\n"])
async def test_an_endless_line_is_cut(size: int, end: str, tmp_path: Path) -> None:
    script = f"head -c {size} /dev/zero | tr '\\0' x; printf '{end}'"
    async with running(script, tmp_path) as worker:
        await worker.process.wait_ended(20)
    lines = [line for line in worker.lines["stdout"] if line]
    if "next" in end:
        assert lines.pop() == "next"
    assert sum(map(len, lines)) == size
    assert max(map(len, lines)) <= MAX_LINE_BYTES
    assert len(lines) <= size // MAX_LINE_BYTES + 1


async def test_its_last_words_are_kept(tmp_path: Path) -> None:
    script = "seq 100; echo '[METRICS]a'; echo; echo why >&2"
    async with running(script, tmp_path) as worker:
        await worker.process.wait_ended(20)
    words = list(worker.process.last_lines)
    assert len(words) == KEPT_LINES
    assert "why" in words
    assert "100" in words
    assert not {"", "[METRICS]a"} & set(words)


async def test_who_cannot_take_a_line_does_not_stop_the_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker whose output nobody reads stands still once the pipe is full."""

    def take(stream: str, line: str) -> None:
        raise ValueError("cannot take it")

    process = await WorkerProcess.start(
        ["/bin/sh", "-c", "seq 3; echo 'Torch worker started.'; seq 15000; exit 7"],
        {"PATH": os.environ["PATH"]},
        str(tmp_path),
        take,
    )
    caplog.set_level("CRITICAL")
    assert await process.wait_listening()
    assert await process.wait_ended(20) == 7
    await process.aclose()


ENDS = [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9), ("kill -15 $$", -15)]


@pytest.mark.parametrize(("script", "code"), ENDS)
async def test_its_exit_code(script: str, code: int, tmp_path: Path) -> None:
    async with running(script, tmp_path) as worker:
        assert await worker.process.wait_ended(20) == code
        assert worker.process.return_code == code
        assert not worker.process.was_killed_by_us


async def test_waiting_for_the_end_has_one_itself(tmp_path: Path) -> None:
    async with running("exec sleep 600", tmp_path) as worker:
        assert await worker.process.wait_ended(0.01) is None
        assert worker.process.return_code is None


async def test_a_kill_of_ours_is_known_to_be_ours(tmp_path: Path) -> None:
    async with running("exec sleep 600", tmp_path) as worker:
        worker.process.kill()
        worker.process.kill()
        assert worker.process.was_killed_by_us
        assert await worker.process.wait_ended(20) == -9


async def test_an_ended_process_is_not_killed_by_us(tmp_path: Path) -> None:
    async with running("exit 1", tmp_path) as worker:
        await worker.process.wait_ended(20)
        worker.process.kill()
        assert not worker.process.was_killed_by_us


async def test_a_signal_to_the_server_does_not_reach_its_workers(tmp_path: Path) -> None:
    """Ctrl-C goes to a whole session; a worker is ended by the server, in order."""
    async with running("exec sleep 600", tmp_path) as worker:
        assert os.getsid(worker.process.pid) == worker.process.pid


async def test_what_it_has_started_ends_with_it(tmp_path: Path) -> None:
    async with running("sleep 600 & echo $!; exec sleep 600", tmp_path) as worker:
        (child,) = await wait_until(lambda: worker.lines["stdout"])
    await wait_until(lambda: not is_running(int(child)))


async def test_what_survives_its_parent_ends_too(tmp_path: Path) -> None:
    async with running("sleep 600 & echo $!; exit 1", tmp_path) as worker:
        (child,) = await wait_until(lambda: worker.lines["stdout"])
        await wait_until(lambda: worker.process.return_code is not None)
        assert is_running(int(child))
    await wait_until(lambda: not is_running(int(child)))


async def test_a_grandchild_that_left_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the pipes open and cannot be found; the worker has ended all the same."""
    monkeypatch.setattr(process_module, "LAST_WORDS_S", 0.05)
    async with running("exit 0", tmp_path):
        pass  # what the loop opens for all its processes
    before = open_descriptors()
    async with asyncio.timeout(20):
        # It says that it has left before its parent ends; else it would be found all the same.
        script = "setsid sh -c 'echo $$; : > left; exec sleep 600' & "
        script += "while [ ! -e left ]; do :; done; exit 1"
        async with running(script, tmp_path) as worker:
            (child,) = await wait_until(lambda: worker.lines["stdout"])
            assert await worker.process.wait_ended(20) == 1
        await turns()
        assert is_running(int(child))
        assert open_descriptors() == before
    os.kill(int(child), signal.SIGKILL)


def open_descriptors() -> set[str]:
    """The pipes, sockets and files of this process; other tests leave threads with event fds."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of this listing
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith("anon_inode:"):
                found.add(f"{name} {target}")
    return found


async def test_it_reads_nothing_from_our_input(tmp_path: Path) -> None:
    async with running("cat; echo end", tmp_path) as worker:
        await worker.process.wait_ended(20)
    assert worker.lines["stdout"] == ["end"]


async def test_its_environment_is_what_it_is_given(tmp_path: Path) -> None:
    async with running("pwd; env", tmp_path) as worker:
        await worker.process.wait_ended(20)
    folder, *variables = worker.lines["stdout"]
    assert folder == str(tmp_path)
    names = {variable.partition("=")[0] for variable in variables}
    assert names <= {"PATH", "PWD", "OLDPWD", "SHLVL", "_"}


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await WorkerProcess.start(["/no/such/program"], {}, str(tmp_path), print)
    with pytest.raises(FileNotFoundError):
        await WorkerProcess.start(["/bin/true"], {}, str(tmp_path / "none"), print)
