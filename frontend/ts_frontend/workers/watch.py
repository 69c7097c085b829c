"""`WorkerWatch`: the one timer that looks after all workers of a server, also the idle ones."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

logger = logging.getLogger(__name__)


class Watched(Protocol):
    def check(self) -> None:
        """Have a look. To be quick: everybody waits for it."""


class WorkerWatch:
    """Asks those that were added to have a look, every `interval_s` seconds; 0 for never.

    While there are none it has no timer.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._watched: dict[Watched, None] = {}  # a set that keeps the order
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watched: Watched) -> None:
        self._watched[watched] = None
        self._set_timer()

    def discard(self, watched: Watched) -> None:
        self._watched.pop(watched, None)
        if not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        if self._interval_s > 0 and self._timer is None and self._watched:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._fired)

    def _fired(self) -> None:
        self._timer = None
        for watched in list(self._watched):
            try:
                watched.check()
            except Exception:  # the others are to be looked at all the same
                logger.exception("%r could not be checked.", watched)
        self._set_timer()
