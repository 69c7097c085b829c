"""Workers that are forked: seen as spawned ones are, whatever becomes of the zygote."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import wait_until
from worker_bench import is_running

from ts_frontend.workers import zygote as zygote_module
from ts_frontend.workers.process import WorkerProcess
from ts_frontend.workers.zygote import UNKNOWN_STATUS, Zygote

ROOT = Path(__file__).resolve().parents[3]
SLEEPS = "print('up', flush=True)\nimport time\ntime.sleep(600)\n"

# A process in the place of the zygote, which does not all that it should.
FAKE = """
import json, os, socket, sys, time
control = socket.socket(fileno=int(sys.argv[1]))
def say(**words):
    control.send(json.dumps(words).encode())
def hear():
    message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 16)
    for descriptor in descriptors:
        os.close(descriptor)
    return json.loads(message) if message else sys.exit()
"""


class Forge:
    """Starts workers of a script, by a zygote of its own; has what they printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.script = folder / "ts" / "model_service_worker.py"
        self.script.parent.mkdir()
        self.zygote_script = self.script.with_name("worker_zygote.py")
        self.zygote_script.symlink_to(ROOT / "ts" / "worker_zygote.py")
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self.modules: list[str] = []
        self.workers: list[WorkerProcess] = []
        self._zygote: Zygote | None = None

    @property
    def zygote(self) -> Zygote:
        if self._zygote is None:
            self._zygote = Zygote(sys.executable, str(self.folder), self.environment, self.modules)
        return self._zygote

    def be_fake(self, does: str) -> None:
        self.zygote_script.unlink()
        self.zygote_script.write_text(FAKE + does)

    async def start(self, script: str, **more: Any) -> WorkerProcess:
        if not self.script.exists():
            self.script.write_text(script)
        options: dict[str, Any] = {"environment": self.environment, "working_dir": "/"}
        worker = await self.zygote.start(
            [sys.executable, str(self.script), "an argument"],
            sink=lambda stream, line: self.lines.append(f"{stream}: {line}"),
            **{**options, **more},
        )
        self.workers.append(worker)
        return worker

    def is_forked(self, worker: WorkerProcess) -> bool:
        return psutil.Process(worker.pid).ppid() == self.zygote.pid


@pytest.fixture
async def forge(tmp_path: Path) -> AsyncIterator[Forge]:
    """Asserts that no process and no descriptor is left."""
    first = await WorkerProcess.start(["/bin/true"], {}, "/", lambda stream, line: None)
    await first.aclose()  # what the loop opens for all its processes
    before = open_descriptors()
    forge = Forge(tmp_path)
    yield forge
    for worker in forge.workers:
        await worker.aclose()
        assert not is_running(worker.pid)
    pid = forge.zygote.pid
    await forge.zygote.aclose()
    assert pid is None or not is_running(pid)
    await wait_until(lambda: open_descriptors() == before)


def open_descriptors() -> list[str]:
    """Their kinds; uvloop now and then exchanges a pair of sockets of its own for another."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of this listing
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith("anon_inode:[event"):
                found.append(target.partition("[")[0])
    return sorted(found)


async def test_a_forked_worker_is_a_process_like_any_other(forge: Forge, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    script = f"""
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ["TMPDIR"], __name__)
print("to stderr", file=sys.stderr)
os.write({writer}, b"through the descriptor")
sys.exit(5)
"""
    worker = await forge.start(
        script,
        environment=forge.environment | {"TMPDIR": "/of/its/own"},
        working_dir=str(tmp_path),
        descriptors=[writer],
    )
    os.close(writer)
    assert await worker.wait_ended(20) == 5
    await worker.aclose()
    assert not worker.was_killed_by_us
    assert f"stdout: ['an argument'] {tmp_path} /of/its/own __main__" in forge.lines
    assert "stderr: to stderr" in forge.lines
    assert os.read(reader, 100) == b"through the descriptor"
    os.close(reader)


ENDS = [
    ("pass", 0),
    ("import sys; sys.exit(3)", 3),
    ("raise ValueError", 1),
    ("import os; os._exit(300 % 256)", 44),
    ("import os; os.kill(os.getpid(), 9)", -9),
    ("import os; os.kill(os.getpid(), 15)", -15),
    ("import ctypes; ctypes.string_at(0)", -11),
]


@pytest.mark.parametrize(("script", "status"), ENDS)
async def test_its_status(script: str, status: int, forge: Forge) -> None:
    worker = await forge.start(script)
    assert await worker.wait_ended(20) == status


async def test_it_is_killed_with_what_it_has_started(forge: Forge) -> None:
    worker = await forge.start(
        "import subprocess\nprint(subprocess.Popen(['sleep', '600']).pid, flush=True)\n" + SLEEPS
    )
    await wait_until(lambda: "stdout: up" in forge.lines)
    child = int(forge.lines[0].removeprefix("stdout: "))
    assert forge.is_forked(worker)
    assert os.getsid(worker.pid) == worker.pid
    worker.kill()
    assert await worker.wait_ended(20) == -9
    assert worker.was_killed_by_us
    await wait_until(lambda: not is_running(child))


async def test_a_folder_that_is_not_there(forge: Forge, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await forge.start(SLEEPS, working_dir=str(tmp_path / "none"))
    assert psutil.Process(forge.zygote.pid).children() == []


async def test_another_environment_needs_an_interpreter_of_its_own(
    forge: Forge, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await forge.start(SLEEPS, environment=forge.environment | {"OMP_NUM_THREADS": "3"})
    assert psutil.Process(worker.pid).ppid() == os.getpid()
    assert "its environment has another OMP_NUM_THREADS" in caplog.text
    assert forge.zygote.pid is None, "for this nobody needs one"


async def test_it_outlives_the_zygote(forge: Forge) -> None:
    worker = await forge.start(SLEEPS)
    first = forge.zygote.pid
    assert first
    os.kill(first, signal.SIGKILL)
    other = await wait_for_another(forge, first)
    assert is_running(worker.pid)
    assert worker.return_code is None
    assert forge.is_forked(other)
    os.kill(worker.pid, signal.SIGTERM)
    # How is told by newer kernels only, and where there is an init that takes in orphans.
    assert await worker.wait_ended(20) in (UNKNOWN_STATUS, -15)


@pytest.mark.parametrize("end", [7, -15])
def test_newer_kernels_keep_the_status(end: int) -> None:
    release = tuple(map(int, os.uname().release.split(".")[:2]))
    ends = f"exit {end}" if end >= 0 else f"kill {end} $$"
    with subprocess.Popen(["/bin/sh", "-c", f"read line; {ends}"], stdin=subprocess.PIPE) as child:
        pidfd = os.pidfd_open(child.pid)
        assert zygote_module._kept_status(pidfd) is None
    status = zygote_module._kept_status(pidfd)
    os.close(pidfd)
    assert child.returncode == end
    assert status == (end if release >= (6, 15) else None)


async def wait_for_another(forge: Forge, first: int) -> WorkerProcess:
    """A worker of the next zygote; the end of the first may not have been seen yet."""
    async with asyncio.timeout(20):
        while True:
            worker = await forge.start(SLEEPS)
            if forge.zygote.pid != first:
                return worker


async def test_the_end_of_a_worker_is_seen_while_the_zygote_is_stopped(forge: Forge) -> None:
    worker = await forge.start(SLEEPS)
    assert forge.zygote.pid
    os.kill(forge.zygote.pid, signal.SIGSTOP)
    os.kill(worker.pid, signal.SIGTERM)
    assert await worker.wait_ended(20) == UNKNOWN_STATUS
    os.kill(forge.zygote.pid, signal.SIGCONT)


async def test_a_worker_that_nobody_waits_for_any_more_ends(forge: Forge) -> None:
    await forge.start(SLEEPS)
    zygote = psutil.Process(forge.zygote.pid)
    zygote.suspend()
    starting = asyncio.create_task(forge.start(SLEEPS))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    zygote.resume()
    last = await forge.start(SLEEPS)
    await wait_until(
        lambda: {child.pid for child in zygote.children()} == {w.pid for w in forge.workers}
    )
    assert forge.is_forked(last)


BROKEN = [
    ("sys.exit(1)", "it has ended"),
    ("say(unfit='it is tired')", "it is tired"),
    ("time.sleep(600)", "not ready within"),
]


@pytest.mark.parametrize(("does", "reason"), BROKEN)
async def test_a_zygote_that_does_not_come_up(
    does: str,
    reason: str,
    forge: Forge,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker is started all the same, and no other zygote is tried."""
    monkeypatch.setattr(zygote_module, "READY_S", 0.5)
    forge.be_fake(does)
    for said in (reason, "it could not be started"):
        worker = await forge.start(SLEEPS)
        assert psutil.Process(worker.pid).ppid() == os.getpid()
        assert said in caplog.text


REFUSING = [
    ("say(id=hear()['id'], unfit='not now'); hear()", "not now", True),
    ("hear()", "it has ended", False),
    ("hear(); time.sleep(600)", "did not answer within", False),
]


@pytest.mark.parametrize(("does", "reason", "stays"), REFUSING)
async def test_a_zygote_that_does_not_fork(
    does: str,
    reason: str,
    stays: bool,
    forge: Forge,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(zygote_module, "ANSWER_S", 0.5)
    forge.be_fake(f"say(ready=True); {does}")
    worker = await forge.start(SLEEPS)
    assert psutil.Process(worker.pid).ppid() == os.getpid()
    assert reason in caplog.text
    first = forge.zygote.pid
    await wait_until(lambda: is_running(first) == stays)
    await forge.start(SLEEPS)
    assert (forge.zygote.pid == first) == stays


async def test_an_error_of_a_fork_is_that_of_a_start(forge: Forge) -> None:
    forge.be_fake("say(ready=True); say(id=hear()['id'], errno=12); hear()")
    with pytest.raises(OSError, match="Cannot allocate memory"):
        await forge.start(SLEEPS)


async def test_modules_that_start_threads_make_a_zygote_unfit(
    forge: Forge, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    forge.environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    forge.modules = ["threaded", "no_such_module"]
    worker = await forge.start(SLEEPS)
    assert psutil.Process(worker.pid).ppid() == os.getpid()
    assert "what it has imported runs 1 threads" in caplog.text
    assert "Not imported: no_such_module" in caplog.text


async def test_many_starts_at_once(forge: Forge) -> None:
    """One zygote for all of them, and each gets its own worker."""
    workers = await asyncio.gather(*(forge.start(SLEEPS) for _ in range(8)))
    assert len({worker.pid for worker in workers}) == 8
    assert all(forge.is_forked(worker) for worker in workers)
    assert len(psutil.Process(forge.zygote.pid).children()) == 8
