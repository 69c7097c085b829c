"""The worker's end of the shared memory, see `ts.protocol.shared_memory`."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket

from ts.protocol.frames import Buffer, ProtocolError
from ts.protocol.shared_memory import (
    ARENA_NUMBER,
    CHANNEL_VARIABLE,
    HELLO,
    MEMORY_NOTE,
    REFERENCE,
    REFERENCE_MARK,
    ReplyArena,
    is_supported,
)


class SharedMemory:
    """Takes in the bodies of requests and lays down those of replies.

    threshold: bodies of replies from this size on go this way, in bytes.
    """

    def __init__(self, channel: socket.socket, threshold: int) -> None:
        """Raises OSError or ProtocolError if the frontend has not passed what it should."""
        self.threshold = threshold
        self._channel = channel
        self._memories: dict[int, mmap.mmap] = {}
        self._taken = 0
        self._read_channel()
        memory = self._memories.pop(ARENA_NUMBER, None)
        if memory is None:
            raise ProtocolError("the frontend has passed no memory for replies")
        self._arena = ReplyArena(memory)
        self.has_garbage = False  # pages to give back when there is nothing else to do
        channel.send(HELLO)

    @classmethod
    def from_environment(cls) -> SharedMemory | None:
        """What the frontend offers; None where it offers nothing, or nothing that can be used."""
        words = os.environ.pop(CHANNEL_VARIABLE, "").split()
        if len(words) != 2 or not is_supported():
            return None
        try:
            channel = socket.socket(fileno=int(words[0]))
        except (OSError, ValueError):
            return None  # a launcher in between has closed it
        try:
            channel.set_inheritable(False)
            channel.setblocking(False)
            return cls(channel, int(words[1]))
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                channel.close()
            return None

    def take(self, number: int, offset: int, size: int) -> bytearray:
        """The handler's own copy of a body. Raises ProtocolError for what is not there."""
        memory = self._memories.get(number)
        if memory is None:
            self._read_channel()
            memory = self._memories.get(number)
        if memory is None or offset < 0 or size < 0 or offset + size > len(memory):
            raise ProtocolError(f"no {size} bytes at {offset} of shared memory {number}")
        with memoryview(memory) as view:
            body = bytearray(view[offset : offset + size])
        self._taken += 1
        self._arena.count_taken(self._taken)
        return body

    def shorten(self, buffers: list[Buffer]) -> list[Buffer]:
        """The same message with references for its large bodies, as far as there is room.

        buffers: as `encode_batch_reply` gives them; every second one is a large body.
        """
        for index in range(1, len(buffers), 2):
            body = buffers[index]
            size = len(body)
            if size >= self.threshold and (offset := self._arena.put(body)) is not None:
                buffers[index - 1] = buffers[index - 1][:-4]  # its length
                buffers[index] = REFERENCE.pack(REFERENCE_MARK, ARENA_NUMBER, offset, size)
                self.has_garbage = True
        if sum(map(len, buffers)) < self.threshold:
            return [b"".join(buffers)]
        return buffers

    def trim(self) -> None:
        """Give memory back that no answer is using; for when there is nothing else to do."""
        with contextlib.suppress(OSError):
            self.has_garbage = not self._arena.trim()

    def _read_channel(self) -> None:
        """Take in every note that is there."""
        while True:
            try:
                note, ancillary, _, _ = self._channel.recvmsg(
                    MEMORY_NOTE.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            if len(note) != MEMORY_NOTE.size:
                return  # the frontend is gone; the connection will say so
            number, size = MEMORY_NOTE.unpack(note)
            descriptors = array.array("i")
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    descriptors.frombytes(data)
            if not descriptors:
                self._memories.pop(number, None)
                continue
            is_arena = number == ARENA_NUMBER
            access = mmap.PROT_READ | mmap.PROT_WRITE if is_arena else mmap.PROT_READ
            try:
                self._memories[number] = mmap.mmap(descriptors[0], size, prot=access)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
