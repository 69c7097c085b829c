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

from ts.protocol.log_lines import split_level

logger = logging.getLogger(__name__)

STARTED_LINE = re.compile(r"(.*)(INFO > )?(Torch worker started\.)$")
PID_LINE = re.compile(r"^(INFO > )?(\[PID])(\d+)$")
MAX_LINE_BYTES = 64 * 1024
"""A longer line is cut into lines of this size.

A handler that prints no newline shall cost no memory.
"""

KEPT_LINES = 20
LAST_WORDS_S = 1.0  # for the rest of the output of a process that has ended

LineSink = Callable[[str, str], None]
"""Called with the stream's name ("stdout" or "stderr") and a line without its end."""


class WorkerProcess:
    """One started process, in its own session so that its children can be ended with it.

    last_lines: the end of what it printed, for the message that says why it died.
    """

    def __init__(self, process: asyncio.subprocess.Process, sink: LineSink) -> None:
        self._process = process
        self._sink = sink
        self._started = asyncio.Event()
        self.reported_pid = process.pid
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.was_killed_by_us = False
        assert process.stdout is not None  # noqa: S101 - PIPE was asked for
        assert process.stderr is not None  # noqa: S101
        self._readers = [
            asyncio.create_task(
                self._read(process.stdout, "stdout"), name=f"stdout of {process.pid}"
            ),
            asyncio.create_task(
                self._read(process.stderr, "stderr"), name=f"stderr of {process.pid}"
            ),
        ]

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        working_dir: str,
        sink: LineSink,
    ) -> WorkerProcess:
        """Raises OSError if the program cannot be started."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environment),
            cwd=working_dir,
            start_new_session=True,
        )
        return cls(process, sink)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def return_code(self) -> int | None:
        """As subprocess has it: negative for a signal; None while it runs."""
        return self._process.returncode

    async def wait_listening(self) -> bool:
        """True when the process has said that it listens, False when it closed a stream before."""
        started = asyncio.create_task(self._started.wait())
        try:
            await asyncio.wait({started, *self._readers}, return_when=asyncio.FIRST_COMPLETED)
            return self._started.is_set()
        finally:
            started.cancel()

    async def wait_ended(self, timeout_s: float) -> int | None:
        """The return code, or None if it still runs after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                return await self._process.wait()
        return self._process.returncode

    def kill(self) -> None:
        """End the process and what it started, at once."""
        if self._process.returncode is None:
            self.was_killed_by_us = True
        # Its group may outlive it: a handler's own children are ended with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        """Kill what is left, take its last words and its exit code."""
        self.kill()
        await self._process.wait()
        # A grandchild that left the session may hold the pipes open: do not wait for it.
        _, pending = await asyncio.wait(self._readers, timeout=LAST_WORDS_S)
        for reader in pending:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        # It would keep our ends of such pipes; asyncio has no public way to close them.
        self._process._transport.close()  # type: ignore[attr-defined]

    async def _read(self, stream: asyncio.StreamReader, name: str) -> None:
        rest = b""
        while chunk := await stream.read(MAX_LINE_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._lines(line, name)
            if len(rest) >= MAX_LINE_BYTES:
                self._line(rest[:MAX_LINE_BYTES], name)
                rest = rest[MAX_LINE_BYTES:]
        if rest:
            self._lines(rest, name)

    def _lines(self, raw: bytes, name: str) -> None:
        for start in range(0, max(1, len(raw)), MAX_LINE_BYTES):
            self._line(raw[start : start + MAX_LINE_BYTES], name)

    def _line(self, raw: bytes, name: str) -> None:
        line = raw.decode("utf-8", "replace").rstrip("\r")
        if not self._started.is_set():
            if match := PID_LINE.match(line):
                self.reported_pid = int(match[3])
            elif STARTED_LINE.match(line):
                self._started.set()
        if line and not line.startswith("[METRICS]"):
            self.last_lines.append(split_level(line)[1])
        try:
            self._sink(name, line)
        except Exception:  # a worker whose output nobody reads would stand still
            logger.exception("A line of worker %d could not be taken.", self.pid)
