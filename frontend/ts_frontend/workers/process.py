"""A worker's operating-system process: start it, read what it prints, know how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

from ts.protocol.log_lines import split_level

logger = logging.getLogger(__name__)

STARTED_LINE = re.compile(r"(.*)(INFO > )?(Torch worker started\.)$")
PID_LINE = re.compile(r"^(INFO > )?(\[PID])(\d+)$")
MAX_LINE_BYTES = 64 * 1024
"""A longer line is cut into lines of this size.

A handler that prints no newline shall cost no memory.
"""

KEPT_LINES = 40  # a crash in native code comes with the stack
LAST_WORDS_S = 1.0  # for the rest of the output of a process that has ended

LineSink = Callable[[str, str], None]
"""Called with the stream's name ("stdout" or "stderr") and a line without its end."""


class StartProcess(Protocol):
    """How the process of a worker comes to be: `WorkerProcess.start`, or a fork that is as good."""

    async def __call__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        working_dir: str,
        sink: LineSink,
        descriptors: Sequence[int] = (),
    ) -> WorkerProcess: ...


def is_stopped(pid: int) -> bool:
    """Whether a process was halted by a signal; False where the system does not tell."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"T"
    return False


def resident_bytes(pid: int) -> int:
    """The memory that a process occupies; 0 where the system does not tell."""
    missing = (OSError, IndexError, ValueError)
    with contextlib.suppress(*missing), open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


class WorkerProcess(asyncio.SubprocessProtocol):
    """One started process, in its own session so that its children can be ended with it.

    last_lines: the end of what it printed, for the message that says why it died.
    """

    def __init__(self, sink: LineSink) -> None:
        self._sink = sink
        self.reported_pid = -1
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.was_killed_by_us = False
        self._rest = {1: b"", 2: b""}  # of an unfinished line, by descriptor
        self._is_listening = False
        self._has_said_all = asyncio.Event()  # about its start: it listens, or never will
        self._ended = asyncio.Event()
        self._silent = asyncio.Event()  # both streams are closed

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        working_dir: str,
        sink: LineSink,
        descriptors: Sequence[int] = (),
    ) -> WorkerProcess:
        """Raises OSError if the program cannot be started.

        descriptors: of ours, which it gets under the same numbers.
        """
        _, process = await asyncio.get_running_loop().subprocess_exec(
            lambda: cls(sink),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environment),
            cwd=working_dir,
            start_new_session=True,
            pass_fds=tuple(descriptors),
        )
        return process

    @property
    def pid(self) -> int:
        return self._transport.get_pid()

    @property
    def return_code(self) -> int | None:
        """As subprocess has it: negative for a signal; None while it runs."""
        return self._transport.get_returncode()

    async def wait_listening(self) -> bool:
        """True when the process has said that it listens, False when it closed a stream before."""
        await self._has_said_all.wait()
        return self._is_listening

    async def wait_ended(self, timeout_s: float) -> int | None:
        """The return code, or None if it still runs after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        return self.return_code

    def kill(self) -> None:
        """End the process and what it started, at once."""
        if self.return_code is None:
            self.was_killed_by_us = True
        # Its group may outlive it: a handler's own children are ended with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        """Kill what is left, take its last words and its exit code."""
        self.kill()
        await self._ended.wait()
        # A grandchild that left the session may hold the pipes open: do not wait for it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._silent.wait()
        self._transport.close()

    # asyncio.SubprocessProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.reported_pid = self.pid

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, rest = (self._rest[fd] + data).split(b"\n")
        for line in lines:
            self._lines(line, fd)
        while len(rest) >= MAX_LINE_BYTES:
            self._line(rest[:MAX_LINE_BYTES], fd)
            rest = rest[MAX_LINE_BYTES:]
        self._rest[fd] = rest

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if rest := self._rest.pop(fd):
            self._line(rest, fd)
        self._has_said_all.set()
        if not self._rest:
            self._silent.set()

    def process_exited(self) -> None:
        self._ended.set()

    def _lines(self, raw: bytes, fd: int) -> None:
        for start in range(0, max(1, len(raw)), MAX_LINE_BYTES):
            self._line(raw[start : start + MAX_LINE_BYTES], fd)

    def _line(self, raw: bytes, fd: int) -> None:
        line = raw.decode("utf-8", "replace").rstrip("\r")
        if not self._has_said_all.is_set():
            if match := PID_LINE.match(line):
                self.reported_pid = int(match[3])
            elif STARTED_LINE.match(line):
                self._is_listening = True
                self._has_said_all.set()
        if line and not line.startswith("[METRICS]"):
            self.last_lines.append(split_level(line)[1])
        try:
            self._sink("stdout" if fd == 1 else "stderr", line)
        except Exception:  # a worker whose output nobody reads would stand still
            logger.exception("A line of worker %d could not be taken.", self.pid)
