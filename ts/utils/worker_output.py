"""A worker's own lines on its standard output: whole, in order, and cheap.

The frontend reads the pipe line by line. A line that somebody may wait for is written at once, with
all that was waiting before it. Lines of metrics come with every batch and nobody waits for one of
them, so they are gathered for a moment and written together by a small thread.

Handlers print through `sys.stdout` as always; `install` makes that show up line by line.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque

from ts.protocol.log_lines import LEVELS_VARIABLE, mark_level

logger = logging.getLogger(__name__)

GATHER_S = 0.1
GATHER_CHARS = 64 * 1024

METRICS_PREFIX = "[METRICS]"


class LineWriter:
    """Writes whole lines to a file descriptor, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting: deque[str] = deque()
        self._waiting_chars = 0
        self._is_flush_due = False
        self._reset_after_fork()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def write_line(self, text: str) -> None:
        """Write `text` now, after all lines that wait."""
        with self._lock:
            self._write([*self._take(), text])

    def write_line_soon(self, text: str) -> None:
        """Write `text` within GATHER_S, or with the next line that is written at once."""
        # No lock: the deque is safe, and a line that comes after a flush has emptied the deque
        # finds that no flush is due and asks for one.
        self._waiting.append(text)
        self._waiting_chars += len(text)
        if self._waiting_chars > GATHER_CHARS:
            self.flush()
        elif not self._is_flush_due:
            self._is_flush_due = True
            self._ask_for_flush()

    def flush(self) -> None:
        with self._lock:
            lines = self._take()
            if lines:
                self._write(lines)

    def _take(self) -> list[str]:
        self._is_flush_due = False
        self._waiting_chars = 0
        lines = []
        with contextlib.suppress(IndexError):
            while True:
                lines.append(self._waiting.popleft())
        return lines

    def _write(self, lines: list[str]) -> None:
        lines.append("")
        data = memoryview("\n".join(lines).encode("utf-8", "backslashreplace"))
        # Nobody reads any more: the frontend is gone, and its socket will say so too.
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._fd, data) :]

    def _ask_for_flush(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._flush_when_asked, name="worker-output", daemon=True
            )
            self._thread.start()
        self._wake.set()

    def _flush_when_asked(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            time.sleep(GATHER_S)
            self.flush()

    def _forget(self) -> None:
        """In a forked child: the lines that wait are the parent's, and its thread is not here."""
        self._waiting.clear()
        self._waiting_chars = 0
        self._is_flush_due = False
        self._reset_after_fork()

    def _reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None


class LineHandler(logging.Handler):
    """Log records as lines of a LineWriter; those of metrics may wait a moment."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer
        self._is_marking = bool(os.environ.get(LEVELS_VARIABLE))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.msg
            if (
                type(text) is str
                and text.startswith(METRICS_PREFIX)
                and not record.args
                and record.levelno <= logging.INFO
            ):
                self._writer.write_line_soon(text)
            else:
                line = self.format(record)
                if self._is_marking and record.levelno != logging.INFO:
                    line = mark_level(line, record.levelno)
                self._writer.write_line(line)
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        self._writer.flush()


_installed: LineWriter | None = None


def write_metrics_line(text: str) -> None:
    """Emit a line of metrics: straight to the writer in a worker, through `logging` elsewhere.

    One comes with every batch, and a log record costs more than all the rest of the line.
    """
    if _installed is None:
        logger.info(text)
    else:
        _installed.write_line_soon(text)


def install() -> LineWriter:
    """Log to standard output at INFO, message text only, and show what is printed line by line."""
    global _installed
    _installed = writer = LineWriter(sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
    handler = LineHandler(writer)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # A pipe is block-buffered otherwise, and prints would show up minutes late or never.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    atexit.register(writer.flush)
    return writer
