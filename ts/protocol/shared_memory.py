"""Large bodies beside the socket: what both processes agree on.

Between a frontend and a worker of ours, on one machine, a large body need not go through the
socket. It lies in memory that both have mapped, and the message carries a reference to it in the
place of its length and bytes:

    int32 -2 (REFERENCE_MARK, a length that no field can have), memory number, offset, length

The memory is anonymous (`memfd_create`): it has no name on any disk and is gone with the last of
the two processes. It cannot be made smaller, so that neither side can make the other touch a page
that is not there.

How they find each other: the frontend starts the worker with one end of a socket pair and names it
in `CHANNEL_VARIABLE` ("<descriptor> <threshold in bytes>"). Through it the frontend passes each
memory once, with its number and size. A worker that understands this says HELLO there before it
answers LOAD; only then references are sent, in both directions. TorchServe's worker does not look,
and TorchServe's frontend does not set the variable, so those pairs speak plain frames.

    memory 0        written by the worker: its replies (`ReplyArena`)
    memory 1, 2, .. written by the frontend, each for one body at a time, read by one worker

A body belongs to one request of the worker that gets the reference. A handler works on a copy of
its own, so nothing that it does to it can reach the frontend; and what a faulty worker writes into
its replies after sending them spoils only the answers of that worker.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

from ts.protocol.frames import Buffer

CHANNEL_VARIABLE = "TS_SHARED_MEMORY_CHANNEL"
HELLO = b"1"

REFERENCE_MARK = -2
REFERENCE = struct.Struct(">iiii")
REFERENCE_REST = struct.Struct(">iii")  # what follows the mark

# A message on the channel: number and size of a memory. With its descriptor the memory is new;
# without one it is not used any more.
MEMORY_NOTE = struct.Struct("=iq")

ARENA_NUMBER = 0
BLOCK_BYTES = 64 * 1024
_FLAGS_AT = 4096
MAX_ARENA_BYTES = 2**31 - BLOCK_BYTES
_TAKEN = struct.Struct("=Q")

_USED = b"\x01"


def is_supported() -> bool:
    """Whether the system has anonymous memory that can be sealed and passed (Linux)."""
    return hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


def create_memory(size: int) -> tuple[int, mmap.mmap]:
    """Fresh zeroed memory that nobody can resize: its descriptor and our map of it.

    Pages are taken from the system when they are first written.
    Raises OSError.
    """
    descriptor = os.memfd_create("torchserve-bodies", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )
        return descriptor, mmap.mmap(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise


class ReplyArena:
    """Memory 0: the worker's replies, in runs of blocks.

    The first block is the head. One byte in it says for every other block whether it is used: the
    worker sets it before it writes there, the frontend clears it when the client has been sent what
    lies there. So each byte has one side that may change it at a time, and neither waits for the
    other. The frontend reads none of these flags.

    The head also counts the references that the worker has taken in, so that the frontend knows
    which of its own memories it may use again.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.size = len(memory)
        self._flags_end = _FLAGS_AT + min(self.size // BLOCK_BYTES - 1, BLOCK_BYTES - _FLAGS_AT)

    # The worker's side.

    def put(self, body: Buffer) -> int | None:
        """Copy `body` into free blocks; the offset, or None if it does not fit now."""
        size = len(body)
        blocks = -(-size // BLOCK_BYTES)
        memory = self.memory
        flag = memory.find(bytes(blocks), _FLAGS_AT, self._flags_end)
        if flag < 0:
            return None
        memory[flag : flag + blocks] = _USED * blocks
        offset = (flag - _FLAGS_AT + 1) * BLOCK_BYTES
        memory[offset : offset + size] = body
        return offset

    def count_taken(self, total: int) -> None:
        _TAKEN.pack_into(self.memory, 0, total)

    def trim(self) -> bool:
        """Give the pages of free blocks back to the system; False if there are used ones left.

        Only between two replies: a block that is being written would lose its bytes.
        """
        memory = self.memory
        start = _FLAGS_AT
        while start < self._flags_end:
            used = memory.find(_USED, start, self._flags_end)
            stop = used if used >= 0 else self._flags_end
            if stop > start:
                offset = (start - _FLAGS_AT + 1) * BLOCK_BYTES
                memory.madvise(mmap.MADV_REMOVE, offset, (stop - start) * BLOCK_BYTES)
            if used < 0:
                return start == _FLAGS_AT
            start = used + 1
        return False

    # The frontend's side.

    @property
    def taken(self) -> int:
        """References that the worker has taken in since its start, as it says."""
        return int(_TAKEN.unpack_from(self.memory, 0)[0])

    def has(self, offset: int, size: int) -> bool:
        """Whether these are bytes of the arena, as a reply may name them."""
        return (
            offset >= BLOCK_BYTES
            and offset % BLOCK_BYTES == 0
            and size > 0
            and offset + size <= BLOCK_BYTES * (self._flags_end - _FLAGS_AT + 1)
        )

    def free(self, offset: int, size: int) -> None:
        blocks = -(-size // BLOCK_BYTES)
        flag = _FLAGS_AT + offset // BLOCK_BYTES - 1
        self.memory[flag : flag + blocks] = bytes(blocks)
