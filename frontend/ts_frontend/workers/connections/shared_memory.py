"""The frontend's end of the shared memory, see `ts.protocol.shared_memory`.

`SharedBodies` owns the memory for request bodies of the whole server. The HTTP door reads a large
body straight into one (`place`), before anybody knows which worker will get it. When it is sent
(`SharedMemoryLane.shorten`), the worker is shown that memory, and from then on it is that worker's:
a memory is never shown to two, and a body that might go to another worker is not read into it. So
the memories of a single worker are used again and again, while several workers get fresh ones; that
costs about as much as a copy, but is none. A body that lies elsewhere (from gRPC, for instance) is
copied into a memory first.

Nobody counts who still needs a body. `place` gives a view of a lease, and whoever keeps a view or a
slice of it keeps the lease: the request, the job that may have to be sent again, the lane until the
worker has taken it in. When the last of them is gone, so is the lease, and the memory is free. In
the same way the answer of a worker is a view of its arena, and the blocks are free when the last
client's transport has written them. Where memory runs out, bodies travel through the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from ts.protocol.frames import Buffer, ProtocolError
from ts.protocol.shared_memory import (
    ARENA_NUMBER,
    CHANNEL_VARIABLE,
    HELLO,
    MAX_ARENA_BYTES,
    MEMORY_NOTE,
    REFERENCE,
    REFERENCE_MARK,
    ReplyArena,
    create_memory,
    is_supported,
)

SMALLEST_BYTES = 1024 * 1024
LARGEST_BYTES = 1024 * 1024 * 1024

# A memory that was not used for so long is given back to the system.
IDLE_S = 5.0


class _Byte(ctypes.Union):
    """A byte whose views are plain views of bytes; those of `c_ubyte` can be neither cast nor
    assigned to.
    """

    _fields_ = (("value", ctypes.c_ubyte),)


class _Lease(ctypes.Array[_Byte]):
    """What the views of one body keep alive; when the last is gone it calls `on_end`."""

    _type_ = _Byte
    _length_ = 0
    owner: BodyMemory | None = None
    on_end: Any = None

    def __del__(self) -> None:
        if self.on_end is not None:
            self.on_end()


_lease_types: dict[int, type[_Lease]] = {}


def _lease(memory: mmap.mmap, on_end: Any) -> _Lease:
    size = len(memory)
    kind = _lease_types.get(size)
    if kind is None:
        kind = type("Lease", (_Lease,), {"_type_": _Byte, "_length_": size})
        _lease_types[size] = kind
    lease = kind.from_buffer(memory)
    lease.on_end = on_end
    return lease


class BodyMemory:
    """One piece of shared memory, for one body at a time.

    seen_by: the lane that was shown it; from then on it is of use for that one only.
    """

    def __init__(self, number: int, size: int) -> None:
        """Raises OSError."""
        self.number = number
        self.size = size
        self.descriptor, self.memory = create_memory(size)
        self.seen_by: SharedMemoryLane | None = None
        self.is_leased = False
        self.used_s = 0.0
        self._free: list[BodyMemory] | None = None

    def lease(self, free: list[BodyMemory]) -> memoryview:
        """A view of it all; it returns to `free` when no view of it is left."""
        self.is_leased = True
        lease = _lease(self.memory, self._end_lease)
        lease.owner = self
        self._free = free
        return memoryview(lease)

    def _end_lease(self) -> None:
        # Perhaps in another thread, whichever let go of the last view.
        self.is_leased = False
        free, self._free = self._free, None
        if free is not None:
            free.append(self)

    def show(self, lane: SharedMemoryLane) -> bool:
        """Let the worker of `lane` map it; False if that cannot be now."""
        if self.seen_by is None:
            if not lane.pass_memory(self.number, self.size, self.descriptor):
                return False
            self.seen_by = lane
            self._close_descriptor()
        return True

    def close(self) -> None:
        """Give the pages back, also where the worker still has it mapped. It must not be leased."""
        self._close_descriptor()
        self.memory.madvise(mmap.MADV_REMOVE)
        # The thread that let go of the last view may hold it for a moment yet, and then closes it.
        with contextlib.suppress(BufferError):
            self.memory.close()
        if self.seen_by is not None:
            self.seen_by.withdraw_memory(self.number)

    def _close_descriptor(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __repr__(self) -> str:
        state = "leased" if self.is_leased else "free"
        return f"<BodyMemory {self.number} {self.size} bytes {state} seen_by={self.seen_by!r}>"


class SharedBodies:
    """Memory for the large request bodies of a server.

    threshold: bodies from this size on are large, in bytes.
    max_bytes: of all memories together.
    """

    def __init__(self, threshold: int, max_bytes: int) -> None:
        self.threshold = threshold
        self._max_bytes = max_bytes
        self._memories: dict[int, BodyMemory] = {}
        self._bytes = 0
        self._last_number = ARENA_NUMBER
        # By size; what was used last is at the end, and taken first: its pages are there.
        self._free: dict[int, list[BodyMemory]] = {}
        self._lanes: set[SharedMemoryLane] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._now_s = 0.0

    @classmethod
    def create(cls, threshold: int, max_bytes: int) -> SharedBodies | None:
        """None where the threshold is 0 (off) or the system has no such memory."""
        if threshold <= 0 or max_bytes <= 0 or not is_supported():
            return None
        return cls(threshold, max_bytes)

    @property
    def reserved_bytes(self) -> int:
        """Of the memories that exist; pages are only there where a body has been."""
        return self._bytes

    def place(self, size: int) -> memoryview | None:
        """Room for a body of `size` bytes, or None if there is none now."""
        view = self._take(size, None)
        return None if view is None else view[:size]

    def copy(self, body: Buffer, lane: SharedMemoryLane) -> memoryview | None:
        """A copy of `body` in a memory that the worker of `lane` may see, or None."""
        view = self._take(len(body), lane)
        if view is None:
            return None
        memory: BodyMemory = view.obj.owner  # type: ignore[attr-defined]
        memory.memory[: len(body)] = body
        return view[: len(body)]

    def open_lane(self) -> SharedMemoryLane | None:
        """For one worker process that is about to be started; None if the system refuses."""
        try:
            lane = SharedMemoryLane(self, min(self._max_bytes, MAX_ARENA_BYTES))
        except OSError:
            return None
        self._lanes.add(lane)
        return lane

    def forget_lane(self, lane: SharedMemoryLane) -> None:
        """Its process is gone, and with it the use of everything that it has seen."""
        self._lanes.discard(lane)
        for memory in list(self._memories.values()):
            if memory.seen_by is lane:
                self._drop(memory)

    def close(self) -> None:
        """Give everything back that no body is in."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for memory in list(self._memories.values()):
            self._drop(memory)

    def _take(self, size: int, lane: SharedMemoryLane | None) -> memoryview | None:
        wanted = max(SMALLEST_BYTES, 1 << (size - 1).bit_length())
        if size > LARGEST_BYTES or wanted > self._max_bytes:
            return None
        if lane is None and len(self._lanes) == 1:
            (lane,) = self._lanes
        free = self._free.setdefault(wanted, [])
        memory = self._pop(free, lane)
        if memory is None:
            for other in self._lanes:
                other.settle()
            memory = self._pop(free, lane)
        if memory is None:
            if free:
                self._drop(free[0])  # a fresh one instead of one that another worker can see
            memory = self._create(wanted)
            if memory is None:
                return None
        memory.used_s = self._now_s
        return memory.lease(free)

    @staticmethod
    def _pop(free: list[BodyMemory], lane: SharedMemoryLane | None) -> BodyMemory | None:
        """The newest one that nobody but `lane` can see."""
        for index in range(len(free) - 1, -1, -1):
            if free[index].seen_by in (None, lane):
                return free.pop(index)
        return None

    def _create(self, size: int) -> BodyMemory | None:
        while self._bytes + size > self._max_bytes:
            idle = [memory for free in self._free.values() for memory in free]
            if not idle:
                return None
            self._drop(min(idle, key=lambda memory: memory.used_s))
        try:
            memory = BodyMemory(self._last_number + 1, size)
        except OSError:
            return None
        self._last_number += 1
        self._memories[memory.number] = memory
        self._bytes += size
        if self._timer is None:
            self._schedule_trim()
        return memory

    def _drop(self, memory: BodyMemory) -> None:
        """Close it, if it is free; a leased one is dropped by the trim that finds it free."""
        free = self._free.get(memory.size, [])
        if memory not in free:
            return
        free.remove(memory)
        del self._memories[memory.number]
        self._bytes -= memory.size
        memory.close()

    def _schedule_trim(self) -> None:
        loop = asyncio.get_running_loop()
        self._now_s = loop.time()
        self._timer = loop.call_later(IDLE_S, self._trim)

    def _trim(self) -> None:
        """Give back what was not used since the last time."""
        self._timer = None
        for lane in self._lanes:
            lane.settle()
        before_s = self._now_s
        for memory in list(self._memories.values()):
            if memory.used_s < before_s or (
                memory.seen_by is not None and memory.seen_by not in self._lanes
            ):
                self._drop(memory)
        if self._memories:
            self._schedule_trim()

    def __repr__(self) -> str:
        free = sum(map(len, self._free.values()))
        return f"<SharedBodies {len(self._memories)} memories, {free} free, {self._bytes} bytes>"


class SharedMemoryLane:
    """What the frontend shares with one worker process, from before its start to its end.

    variables, descriptor: what the process must be started with.
    """

    def __init__(self, bodies: SharedBodies, arena_bytes: int) -> None:
        """Raises OSError."""
        self._bodies = bodies
        self._threshold = bodies.threshold
        self._sent: deque[memoryview] = deque()  # not yet known to be taken in by the worker
        self._settled = 0
        self._channel, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._channel.setblocking(False)
            descriptor, memory = create_memory(arena_bytes)
            try:
                self._arena = ReplyArena(memory)
                self.pass_memory(ARENA_NUMBER, arena_bytes, descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            self._channel.close()
            self._theirs.close()
            raise

    @property
    def descriptor(self) -> int:
        return self._theirs.fileno()

    @property
    def variables(self) -> dict[str, str]:
        return {CHANNEL_VARIABLE: f"{self.descriptor} {self._threshold}"}

    def started(self) -> None:
        """The process has its end of the channel now, or will never want it."""
        self._theirs.close()

    def is_understood(self) -> bool:
        """Whether the worker has said that it knows what this is; asked once it has loaded."""
        try:
            return self._channel.recv(len(HELLO)) == HELLO
        except OSError:
            return False

    def close(self) -> None:
        """The process has ended, or will use nothing of this any more."""
        self._theirs.close()
        self._channel.close()
        self._sent.clear()
        self._bodies.forget_lane(self)

    def shorten(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """The same message with references for its large bodies, as far as there is memory.

        buffers: as `encode_predict` gives them.
        """
        shortened = list(buffers)
        for index in range(1, len(shortened), 2):
            body = shortened[index]
            if len(body) >= self._threshold and (reference := self._refer(body)) is not None:
                shortened[index - 1] = shortened[index - 1][:-4]  # its length
                shortened[index] = reference
        if sum(map(len, shortened)) < self._threshold:
            return [b"".join(shortened)]
        return shortened

    def _refer(self, body: Buffer) -> bytes | None:
        self.settle()
        lease = body.obj if isinstance(body, memoryview) else None
        if isinstance(lease, _Lease) and lease.owner is not None:
            memory = lease.owner
            if memory.seen_by in (None, self) and memory.show(self):
                first = ctypes.addressof(ctypes.c_ubyte.from_buffer(body))
                return self._note_sent(body, memory, first - ctypes.addressof(lease))
        copied = self._bodies.copy(body, self)
        if copied is None:
            return None
        memory = copied.obj.owner  # type: ignore[attr-defined]
        return self._note_sent(copied, memory, 0) if memory.show(self) else None

    def _note_sent(self, body: Buffer, memory: BodyMemory, offset: int) -> bytes:
        self._sent.append(memoryview(body))
        return REFERENCE.pack(REFERENCE_MARK, memory.number, offset, len(body))

    def settle(self) -> None:
        """Let go of the bodies that the worker has taken in, by its own count."""
        sent = self._sent
        if sent:
            taken = self._arena.taken
            while sent and self._settled < taken:
                self._settled += 1
                sent.popleft()

    def body(self, number: int, offset: int, size: int) -> memoryview:
        """The body that a reply refers to. Raises ProtocolError if there is none."""
        arena = self._arena
        if number != ARENA_NUMBER or not arena.has(offset, size):
            raise ProtocolError(f"no {size} bytes at {offset} of shared memory {number}")
        self.settle()
        lease = _lease(arena.memory, lambda: arena.free(offset, size))
        return memoryview(lease)[offset : offset + size]

    def pass_memory(self, number: int, size: int, descriptor: int) -> bool:
        try:
            socket.send_fds(self._channel, [MEMORY_NOTE.pack(number, size)], [descriptor])
        except OSError:  # the worker reads nothing, or is gone
            return False
        return True

    def withdraw_memory(self, number: int) -> None:
        """Tell the worker that it may forget it."""
        try:
            self._channel.send(MEMORY_NOTE.pack(number, 0))
        except OSError:
            return

    def __repr__(self) -> str:
        return f"<SharedMemoryLane {len(self._sent)} bodies sent>"
