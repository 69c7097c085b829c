"""Tensors of the Open Inference Protocol on their way to a worker and back.

A request is its JSON in the part `body`. Inputs that came as bytes have no `data` there: their
elements are parts of their own, as they came, so that nobody makes Python objects or text of them
whom the handler did not ask to. An answer is JSON, or, where the request's `binary_data_output` or
`binary_data` asks for bytes, the protocol's binary form: JSON, and behind it the elements of the
outputs that have a `binary_data_size`.

Raw elements are row-major, little-endian, without padding; one of BYTES stands behind its length.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ts.protocol.frames import Buffer

# The envelope (`ts.torch_handler.request_envelope`) that understands the above.
ENVELOPE = "open_inference"
PART_TYPE = b"application/x-oip-tensor"

BINARY_SIZE = "binary_data_size"
BINARY_OUTPUT = "binary_data"
BINARY_OUTPUTS = "binary_data_output"
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
BINARY_CONTENT_TYPE = "application/octet-stream"

# Size of an element in bytes (0: BYTES, whose elements tell theirs), and its code in the modules
# struct and array ("": neither knows the type).
ELEMENTS: Mapping[str, tuple[int, str]] = {
    "BOOL": (1, "?"),
    "UINT8": (1, "B"),
    "UINT16": (2, "H"),
    "UINT32": (4, "I"),
    "UINT64": (8, "Q"),
    "INT8": (1, "b"),
    "INT16": (2, "h"),
    "INT32": (4, "i"),
    "INT64": (8, "q"),
    "FP16": (2, "e"),
    "BF16": (2, ""),
    "FP32": (4, "f"),
    "FP64": (8, "d"),
    "BYTES": (0, ""),
}

_LENGTH = struct.Struct("<I")


def part_name(index: int) -> str:
    """Of the part with the elements of a request's input."""
    return f"tensor:{index}"


def check_raw(datatype: str, count: int, raw: Buffer) -> None:
    """That `raw` holds exactly `count` elements, without making them. Raises ValueError."""
    if datatype == "BYTES":
        for _ in _spans(count, raw):
            pass
        return
    size = ELEMENTS[datatype][0]
    if len(raw) != count * size:
        raise ValueError(f"{count} elements of {datatype} are {count * size} bytes, not {len(raw)}")


def unpack(datatype: str, count: int, raw: Buffer) -> Sequence[Any]:
    """The elements in `raw` as Python values, those of BYTES as bytes. Raises ValueError as
    `check_raw` does.
    """
    if datatype == "BYTES":
        return [bytes(raw[start:end]) for start, end in _spans(count, raw)]
    check_raw(datatype, count, raw)
    if datatype == "BF16":
        return struct.unpack(f"<{count}f", widen_bf16(raw))
    return struct.unpack(f"<{count}{ELEMENTS[datatype][1]}", raw)


def widen_bf16(raw: Buffer) -> bytearray:
    """The same numbers as FP32, whose upper half a BF16 is."""
    wide = bytearray(2 * len(raw))
    low_first = bytes(raw)
    wide[2::4] = low_first[0::2]
    wide[3::4] = low_first[1::2]
    return wide


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """Elements of BYTES in their raw form."""
    return b"".join([_LENGTH.pack(len(element)) + element for element in elements])


def flatten(data: Any) -> Iterator[Any]:
    """The leaves of nested lists, row by row."""
    if not isinstance(data, list):
        yield data
        return
    waiting = [iter(data)]
    while waiting:
        for item in waiting[-1]:
            if isinstance(item, list):
                waiting.append(iter(item))
                break
            yield item
        else:
            waiting.pop()


def _spans(count: int, raw: Buffer) -> Iterable[tuple[int, int]]:
    """Where each element of BYTES begins and ends."""
    total = len(raw)
    if count > total // _LENGTH.size:
        raise ValueError(f"{count} elements of BYTES do not fit {total} bytes")
    position = 0
    for _ in range(count):
        start = position + _LENGTH.size
        if start > total:
            raise ValueError("the raw contents end within an element")
        (length,) = _LENGTH.unpack_from(raw, position)
        position = start + length
        if position > total:
            raise ValueError("the raw contents end within an element")
        yield start, position
    if position != total:
        raise ValueError(f"{total - position} bytes are left after {count} elements")
