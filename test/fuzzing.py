"""What fuzz tests share: how long they look, and how what was made of bytes is put down."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from ts.protocol.messages import ProtocolError

fuzzed = settings(
    max_examples=int(os.environ.get("TS_FUZZ_EXAMPLES", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def outcome(reader, step, pieces) -> tuple[list[str], str]:
    """What was read, and the complaint that ended it."""
    read = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (message := step()) is not None:
                read.append(plain(message))
    except ProtocolError as error:
        return read, str(error)
    return read, ""


def plain(message) -> str:
    """Whether a body is kept as bytes or as a view depends on how it came, and means nothing."""
    if isinstance(message, memoryview | bytearray | bytes):
        return repr(bytes(message))
    if isinstance(message, list | tuple):
        return f"{type(message).__name__}({', '.join(plain(item) for item in message)})"
    return repr(message)


def pieces_of(data: bytes, cuts) -> list[bytes]:
    pieces, position = [], 0
    for size in cuts:
        pieces.append(data[position : position + size])
        position += size
    return [piece for piece in (*pieces, data[position:]) if piece]
