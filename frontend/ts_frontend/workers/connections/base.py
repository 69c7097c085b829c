"""The bytes between the frontend and one worker process.

A connection sends whole messages and hands whole replies to its owner, in the event loop's turn in
which they arrive. It decides nothing: what a lost connection or a strange reply means is the
worker's business.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Protocol, cast

from ts.protocol.messages import LoadReply, PredictReply, ProtocolError, ReplyReader
from ts_frontend.workers.connections.shared_memory import SharedMemoryLane

Buffers = Sequence[bytes | bytearray | memoryview]


class ConnectionOwner(Protocol):
    def on_load_reply(self, reply: LoadReply) -> None: ...

    def on_predict_reply(self, reply: PredictReply) -> None: ...

    def on_connection_lost(self, reason: str, is_bad_reply: bool) -> None:
        """The connection is of no use any more; called once, not after `close`."""


class WorkerConnection(Protocol):
    """What a worker needs of its connection, whatever carries the bytes."""

    def send(self, buffers: Buffers) -> None: ...

    def send_soon(self, buffers: Buffers) -> None:
        """Send with whatever else comes in this turn of the loop: nobody waits for it yet."""
        ...

    def use_lane(self, lane: SharedMemoryLane) -> None:
        """Let large bodies go through shared memory."""
        ...

    def close(self) -> None: ...


class SocketConnection(asyncio.Protocol):
    """TorchServe's frames over a stream socket; `unix` and `tcp` differ in how they connect."""

    def __init__(self, owner: ConnectionOwner, max_field_bytes: int) -> None:
        self._owner: ConnectionOwner | None = owner
        self._reader = ReplyReader(max_field_bytes)
        self._is_loaded = False
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes | bytearray | memoryview] = []
        self._lane: SharedMemoryLane | None = None

    def use_lane(self, lane: SharedMemoryLane) -> None:
        """From now on large bodies may go through shared memory: the worker has agreed."""
        self._lane = lane
        self._reader.shared_body = lane.body

    def send(self, buffers: Buffers) -> None:
        if self._transport is None:
            return
        if len(buffers) > 1 and self._lane is not None:
            buffers = self._lane.shorten(buffers)
            if len(buffers) == 1 and self._send_now(buffers[0]):
                return
        if self._unsent:
            self._unsent.extend(buffers)
        elif len(buffers) == 1:
            self._transport.write(buffers[0])
        else:
            self._transport.writelines(buffers)

    def _send_now(self, data: bytes | bytearray | memoryview) -> bool:
        """Past the transport, which writes at the end of the loop's turn.

        Before it there may be large answers to write, and the worker would wait for that.
        """
        if self._unsent or self._transport is None or self._transport.get_write_buffer_size():
            return False
        try:
            sent = os.write(self._transport.get_extra_info("socket").fileno(), data)
        except OSError:
            return False  # full, or lost: the transport will find out
        if sent < len(data):
            self._transport.write(data[sent:])
        return True

    def send_soon(self, buffers: Buffers) -> None:
        if len(buffers) > 1 and self._lane is not None:
            buffers = self._lane.shorten(buffers)
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.extend(buffers)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.writelines(unsent)

    def close(self) -> None:
        """Say goodbye: the worker reads the end of the stream and exits."""
        self._owner = None
        self._lane = self._reader.shared_body = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while self._owner is not None:
                if self._is_loaded:
                    reply = reader.next_predict()
                    if reply is None:
                        return
                    self._owner.on_predict_reply(reply)
                else:
                    load_reply = reader.next_load()
                    if load_reply is None:
                        return
                    self._is_loaded = True
                    self._owner.on_load_reply(load_reply)
        except ProtocolError as error:
            self._lose(f"the worker's reply could not be read: {error}", is_bad_reply=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("the worker closed its connection" if exc is None else f"connection lost: {exc}")

    def _lose(self, reason: str, *, is_bad_reply: bool = False) -> None:
        owner = self._owner
        self.close()
        if owner is not None:
            owner.on_connection_lost(reason, is_bad_reply)
