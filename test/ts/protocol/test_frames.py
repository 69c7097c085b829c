"""ByteInput: whatever the pieces, the bytes come out in order, and small pieces are gathered."""

from __future__ import annotations

import pytest

from ts.protocol.frames import (
    END,
    ByteInput,
    ProtocolError,
    encode_field,
    encode_int,
    length_error,
)


@pytest.mark.parametrize(
    ("number", "encoded"),
    [
        (0, b"\x00\x00\x00\x00"),
        (1, b"\x00\x00\x00\x01"),
        (1023, b"\x00\x00\x03\xff"),
        (1024, b"\x00\x00\x04\x00"),
        (-1, b"\xff\xff\xff\xff"),
        (2**31 - 1, b"\x7f\xff\xff\xff"),
    ],
)
def test_encode_int(number, encoded):
    assert encode_int(number) == encoded


def test_end_is_minus_one():
    assert encode_int(-1) == END


def test_encode_field():
    assert encode_field(b"abc") == b"\x00\x00\x00\x03abc"


def test_length_error_tells_field_size_and_limit():
    assert str(length_error("response body", 11, 10)) == (
        "response body of 11 bytes is larger than the limit of 10 bytes"
    )
    assert str(length_error("request id", -7, 10)) == "request id has the impossible length -7"


def test_protocol_error_is_a_value_error():
    # Callers of the historical codec functions expect ValueError for an unknown command.
    assert issubclass(ProtocolError, ValueError)


def test_single_piece_is_not_copied():
    source = ByteInput()
    piece = b"x" * 10
    source.feed(piece)
    assert source.merge()
    assert source.buffer is piece
    assert not source.merge()


def test_mutable_piece_is_copied():
    source = ByteInput()
    piece = bytearray(b"abc")
    source.feed(piece)
    piece[0] = 0
    source.merge()
    assert source.buffer == b"abc"


def test_merge_keeps_what_is_unread():
    source = ByteInput()
    source.feed(b"abc")
    source.merge()
    source.position = 1
    source.feed(b"def")
    source.merge()
    assert source.buffer[source.position :] == b"bcdef"


def test_more_suspends_until_enough():
    source = ByteInput()
    waiting = source.more(b"ab", 1, 4)
    assert next(waiting) is None
    source.feed(b"cd")
    assert next(waiting) is None
    source.feed(b"ef")
    with pytest.raises(StopIteration) as done:
        next(waiting)
    assert done.value.value == (b"bcdef", 0, 5)


def test_small_pieces_are_gathered():
    source = ByteInput()
    for _ in range(10_000):
        source.feed(b"x")
    assert len(source.take()) <= 2
