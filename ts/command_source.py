"""The commands of a connection for a worker that runs one batch at a time.

While a handler runs, nobody reads the socket. A handler that asks whether its request was cancelled
(`Context.is_cancelled`) has a look at it: what has come is taken without waiting, cancels are noted
and the rest is kept for later. So a worker whose handler never asks pays nothing for the offer, and
needs no second thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection

from ts.protocol.messages import Cancel, Command, PredictRequest, ProtocolError
from ts.transports.connection import FrontendConnection, FrontendDisconnected

# A stream asks with each of its pieces, and a look costs more than to encode one.
LOOK_PAUSE_S = 0.0005


class CommandSource:
    """Commands in their order, and who of the requests among them was cancelled.

    look_pause_s: from one look at the socket to the next at least; a cancel is heard so much later
                  at most.
    """

    def __init__(
        self, connection: FrontendConnection, *, look_pause_s: float = LOOK_PAUSE_S
    ) -> None:
        self._connection = connection
        self._look_pause_s = look_pause_s
        self._next_look_s = 0.0
        self._ahead: deque[Command] = deque()  # taken by a look, not yet handed out
        self._running: list[PredictRequest] = []
        self._cancelled: set[str] = set()
        self._is_gone = False
        # Held by whoever reads the socket: handlers may ask from threads of theirs.
        self._lock = threading.Lock()

    def receive(self) -> Command:
        """Wait for the next command; the batch before it is over. Cancels are never handed out.

        Raises FrontendDisconnected, or ProtocolError for bytes that are no command.
        """
        with self._lock:
            self._forget_answered()
            while True:
                if self._ahead:
                    command = self._ahead.popleft()
                else:
                    command = self._connection.receive_command()
                if type(command) is list:
                    self._running = command
                elif type(command) is Cancel:
                    continue  # all that was asked before it has been answered
                return command

    def is_abandoned(self, batch: list[PredictRequest]) -> bool:
        """Whether nobody waits for any request of `batch`, as far as looks have told."""
        cancelled = self._cancelled
        return bool(cancelled) and all(_text(request.id) in cancelled for request in batch)

    def covers(self, request_ids: Collection[str]) -> bool:
        """Whether nobody waits for any of these any more. May be called from any thread."""
        cancelled = self._cancelled
        now_s = time.monotonic()
        if now_s >= self._next_look_s and not (cancelled and cancelled.issuperset(request_ids)):
            self._look()
            self._next_look_s = now_s + self._look_pause_s
        return self._is_gone or (bool(cancelled) and cancelled.issuperset(request_ids))

    def _look(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # somebody is reading: another thread's look, or the batch is over
        try:
            self._connection.receive_ready()
            while (command := self._connection.next_command()) is not None:
                if type(command) is Cancel:
                    self._note(command)
                else:
                    self._ahead.append(command)
        except (FrontendDisconnected, ProtocolError):
            self._is_gone = True  # the next `receive` meets it again and says so
        finally:
            self._lock.release()

    def _note(self, cancel: Cancel) -> None:
        # Of others the answer was on its way; remembering them would never end.
        if any(request.id == cancel.id for batch in self._batches() for request in batch):
            self._cancelled.add(_text(cancel.id))

    def _forget_answered(self) -> None:
        self._running = []  # its bodies would stay in memory for as long as nothing comes
        if self._cancelled:
            self._cancelled &= {_text(request.id) for batch in self._batches() for request in batch}

    def _batches(self) -> list[list[PredictRequest]]:
        return [self._running, *(command for command in self._ahead if type(command) is list)]


def _text(request_id: bytes) -> str:
    return bytes(request_id).decode("utf-8", "replace")
