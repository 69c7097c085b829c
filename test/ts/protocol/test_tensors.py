"""Elements of tensors: raw bytes and Python values, and claims that do not fit the bytes."""

from __future__ import annotations

import math

import pytest

from ts.protocol.tensors import check_raw, flatten, pack_bytes, unpack


@pytest.mark.parametrize(
    ("datatype", "raw", "elements"),
    [
        ("BOOL", b"\x00\x01", [False, True]),
        ("INT16", b"\xff\xff\x00\x01", [-1, 256]),
        ("UINT64", b"\xff" * 8, [2**64 - 1]),
        ("FP16", b"\x00\x3e", [1.5]),
        ("BF16", b"\x80\xff\xc0\x3f", [-math.inf, 1.5]),
        ("FP32", b"\x00\x00\xc0\x3f", [1.5]),
        ("BYTES", b"\x01\x00\x00\x00a\x00\x00\x00\x00", [b"a", b""]),
    ],
)
def test_elements_are_little_endian_and_lie_side_by_side(datatype, raw, elements) -> None:
    check_raw(datatype, len(elements), raw)
    assert list(unpack(datatype, len(elements), raw)) == elements
    with pytest.raises(ValueError, match="elements"):
        unpack(datatype, len(elements) - 1, raw)
    with pytest.raises(ValueError, match="element"):
        check_raw(datatype, len(elements) + 1, raw)


@pytest.mark.parametrize(
    ("count", "raw"),
    [(1, b"\x05\x00\x00\x00a"), (2, b"\x00\x00\x00\x00\x01"), (2**62, b"\x00" * 8)],
)
def test_elements_of_bytes_end_where_the_bytes_end(count, raw) -> None:
    with pytest.raises(ValueError, match="element"):
        check_raw("BYTES", count, raw)


def test_packed_bytes_are_read_again() -> None:
    elements = [b"", b"a", b"\xff" * 300]
    assert unpack("BYTES", 3, pack_bytes(elements)) == elements


def test_flatten_takes_any_depth() -> None:
    data: list = [1]
    for _ in range(100_000):
        data = [data]
    assert list(flatten([data, [2, [[], 3]]])) == [1, 2, 3]
