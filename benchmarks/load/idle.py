"""Connections that are open and say nothing."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator


class IdleConnections:
    """Opened by `open`, which closes them on leaving."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets

    @classmethod
    @contextlib.contextmanager
    def open(cls, host: str, port: int, count: int) -> Iterator[IdleConnections]:
        """Raises OSError."""
        with contextlib.ExitStack() as stack:
            yield cls(
                [
                    stack.enter_context(socket.create_connection((host, port), timeout=20))
                    for _ in range(count)
                ]
            )

    def still_open(self) -> int:
        """How many the server has not closed; it has nothing else to say on them."""
        poll = select.poll()
        for each in self._sockets:
            poll.register(each, select.POLLIN)
        return len(self._sockets) - len(poll.poll(0))
