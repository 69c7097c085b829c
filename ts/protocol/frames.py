"""Length-prefixed fields, and the bytes that wait until a whole one is there.

Every number on the wire is a signed 32-bit big-endian integer. A field is its length and its bytes;
a list ends with the length -1; there is no frame around a message. A parser is a generator that
runs over the bytes of one buffer and suspends itself where they end, so that no split of the stream
makes it read anything twice:

    ByteInput.feed    new bytes, from the socket
    ByteInput.merge   at a message boundary: everything fed becomes the buffer
    ByteInput.more    inside a message: suspends the parser until enough bytes are there
"""

from __future__ import annotations

import struct
from collections.abc import Generator

INT = struct.Struct(">i")
TWO_INTS = struct.Struct(">ii")
pack_int = INT.pack

END = pack_int(-1)
EMPTY = pack_int(0)

# Most lengths are small, and indexing a table takes half the time of packing.
SMALL_INTS = tuple(pack_int(number) for number in range(1024))

# Pieces below this are gathered in one bytearray, so that a peer that sends byte by byte
# costs its bytes and not an object for each.
GATHER_BYTES = 4096

# The largest length the wire can say.
MAX_LENGTH = 2**31 - 1

# Any object that shows its bytes in place.
Buffer = bytes | bytearray | memoryview


class ProtocolError(ValueError):
    """The peer sent bytes that are no message; the connection cannot be used any more."""


def length_error(field: str, length: int, limit: int) -> ProtocolError:
    """The complaint about a length outside 0..limit; made before anything is allocated for it."""
    if length < 0:
        return ProtocolError(f"{field} has the impossible length {length}")
    return ProtocolError(f"{field} of {length} bytes is larger than the limit of {limit} bytes")


def encode_int(number: int) -> bytes:
    return SMALL_INTS[number] if 0 <= number < 1024 else pack_int(number)


def encode_field(data: bytes) -> bytes:
    return encode_int(len(data)) + data


class ByteInput:
    """Bytes that have come and are not parsed yet, kept as they came for as long as possible.

    `buffer` from `position` on is what a parser reads next at a message boundary; inside a message
    the parser works on its own copies of these two, and nobody else may touch them.
    """

    __slots__ = ("_chunk_bytes", "_chunks", "buffer", "position")

    def __init__(self) -> None:
        self.buffer = b""
        self.position = 0
        self._chunks: list[bytes | bytearray] = []
        self._chunk_bytes = 0

    def feed(self, data: Buffer) -> None:
        """Take bytes from the peer. `bytes` are kept, anything else is copied."""
        size = len(data)
        chunks = self._chunks
        if size < GATHER_BYTES and chunks:
            last = chunks[-1]
            if isinstance(last, bytearray):
                last += data
            else:
                chunks.append(bytearray(data))
        elif size:
            chunks.append(data if isinstance(data, bytes) else bytes(data))
        self._chunk_bytes += size

    def merge(self) -> bool:
        """Make everything fed so far part of `buffer`; False if there was nothing."""
        if not self._chunks:
            return False
        self.buffer = self._join(self.buffer, self.position)
        self.position = 0
        return True

    def more(
        self, buffer: bytes, position: int, count: int
    ) -> Generator[None, None, tuple[bytes, int, int]]:
        """Suspend until `count` bytes follow `position`; gives the new buffer, position and end."""
        missing = count - (len(buffer) - position)
        while self._chunk_bytes < missing:
            yield None
        buffer = self._join(buffer, position)
        return buffer, 0, len(buffer)

    def take(self) -> list[bytes | bytearray]:
        """Hand over what was fed since the last merge, unjoined."""
        chunks, self._chunks, self._chunk_bytes = self._chunks, [], 0
        return chunks

    def put_back(self, data: Buffer) -> None:
        """Return the end of what `take` gave; nothing may have been fed in between."""
        if len(data):
            self._chunks.append(bytes(data))
            self._chunk_bytes += len(data)

    def _join(self, buffer: bytes, position: int) -> bytes:
        chunks = self._chunks
        first = chunks[0]
        if len(chunks) == 1 and position == len(buffer) and isinstance(first, bytes):
            joined = first
        else:
            joined = b"".join([memoryview(buffer)[position:], *chunks])
        self._chunks = []
        self._chunk_bytes = 0
        return joined
