"""`ReplyDue`: the deadline over a worker's next reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ts_frontend.core.clock import monotonic


class ReplyDue:
    """When the process has to say something next.

    One number watched by one timer, which is moved only when it fires, so that a busy worker sets
    no timer per batch.
    """

    __slots__ = ("_due_s", "_on_overdue", "_timer")

    def __init__(self, on_overdue: Callable[[], None]) -> None:
        self._on_overdue = on_overdue
        self._due_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, timeout_s: float) -> None:
        """Something is due within `timeout_s` from now, whatever was due before."""
        self._due_s = monotonic() + timeout_s
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(timeout_s, self._fired)

    def forget(self) -> None:
        """Nothing is due."""
        self._due_s = None

    def close(self) -> None:
        self._due_s = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fired(self) -> None:
        self._timer = None
        if self._due_s is None:
            return
        left_s = self._due_s - monotonic()
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._fired)
        else:
            self._due_s = None
            self._on_overdue()
