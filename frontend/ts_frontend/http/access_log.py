"""The access log: one line per answer, written in batches.

Lines are handed to the writer together, every 100 ms or 1024 lines, whichever is first: each batch
wakes the writing thread, which takes its turns from the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

FLUSH_INTERVAL_S = 0.1
FLUSH_LINES = 1024


class AccessLog:
    """Collects lines and hands them to `write`.

    write: gets a batch of lines without line ends, in order; runs on the event loop, so it must not
        block for long.
    """

    def __init__(
        self,
        write: Callable[[Sequence[str]], None],
        *,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        flush_lines: int = FLUSH_LINES,
    ) -> None:
        self._write = write
        self._flush_interval_s = flush_interval_s
        self._flush_lines = flush_lines
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def note(
        self, remote: str, method: str, target: bytes, version: str, status: int, seconds: float
    ) -> None:
        """`/127.0.0.1:53514 "GET /models HTTP/1.1" 200 2`, the time in milliseconds.

        target: as the client sent it.
        """
        # The parser lets only printable ASCII through, but entries of other doors may not be so
        # lucky.
        text = target.decode("ascii", "backslashreplace")
        lines = self._lines
        lines.append(f'{remote} "{method} {text} HTTP/{version}" {status} {int(seconds * 1000)}')
        if len(lines) >= self._flush_lines:
            self.flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._flush_interval_s, self.flush)

    def flush(self) -> None:
        """Write what is waiting; call it once more at the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            self._write(lines)
