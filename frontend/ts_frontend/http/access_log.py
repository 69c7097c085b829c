"""The access log: one line per answer, written in batches.

The hot path only appends a tuple. Lines are formatted and handed to the writer together, every 100
ms or 512 entries, whichever is first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

FLUSH_INTERVAL_S = 0.1
FLUSH_ENTRIES = 512


class AccessEntry(NamedTuple):
    remote: str  # "/127.0.0.1:64003"
    method: str
    target: bytes  # as the client sent it
    version: str
    status: int
    seconds: float


def format_entry(entry: AccessEntry) -> str:
    """`/127.0.0.1:53514 "GET /models HTTP/1.1" 200 2`, the time in milliseconds."""
    remote, method, target, version, status, seconds = entry
    # The parser lets only printable ASCII through, but entries of other doors may not be so lucky.
    text = target.decode("ascii", "backslashreplace")
    return f'{remote} "{method} {text} HTTP/{version}" {status} {int(seconds * 1000)}'


class AccessLog:
    """Collects entries and hands formatted lines to `write`.

    write: gets a batch of lines without line ends, in order; runs on the event loop, so it must not
        block for long.
    """

    def __init__(
        self,
        write: Callable[[Sequence[str]], None],
        *,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        flush_entries: int = FLUSH_ENTRIES,
    ) -> None:
        self._write = write
        self._flush_interval_s = flush_interval_s
        self._flush_entries = flush_entries
        self._entries: list[AccessEntry] = []
        self._timer: asyncio.TimerHandle | None = None

    def append(self, entry: AccessEntry) -> None:
        entries = self._entries
        entries.append(entry)
        if len(entries) >= self._flush_entries:
            self.flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._flush_interval_s, self.flush)

    def flush(self) -> None:
        """Write what is waiting; call it once more at the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        entries, self._entries = self._entries, []
        if entries:
            self._write([format_entry(entry) for entry in entries])
