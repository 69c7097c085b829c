"""Elements of one tensor between their forms: JSON text, raw bytes, Python values.

Every claim of a client (shape, size) is compared with the bytes that are really there before
anything is made of them, so no claim can make the server allocate. Integers are Python's: products
of dimensions do not overflow. Nothing here uses numpy; FP16 is known to `struct`, BF16 is the upper
half of a FP32.
"""

from __future__ import annotations

import array
import base64
import json
import math
import re
import struct
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from ts.protocol import tensors as wire
from ts_frontend.core.errors import InvalidArgument
from ts_frontend.dialects.open_inference.schema import DATATYPES, Datatype

MAX_DIMENSIONS = 64
MAX_LENGTH = 2**63 - 1  # int64, the protocol's type of a dimension

# A conversion that runs in a thread gives the event loop its turns between two of these.
CHUNK = 1 << 15

Buffer = bytes | bytearray | memoryview

_EMPTY_LIST = re.compile(rb"\[\s*\]")


def datatype_of(name: str, datatype: str) -> Datatype:
    """name: the tensor's, for the message. Raises InvalidArgument."""
    known = DATATYPES.get(datatype)
    if known is None:
        raise InvalidArgument(
            f'"{name}": unknown datatype "{datatype[:20]}"; known are {", ".join(DATATYPES)}'
        )
    return known


def element_count(name: str, shape: Sequence[int]) -> int:
    """The number of elements that a shape stands for. Raises InvalidArgument."""
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidArgument(f'"{name}": more than {MAX_DIMENSIONS} dimensions')
    for length in shape:
        if not 0 <= length <= MAX_LENGTH:
            raise InvalidArgument(f'"{name}": a dimension cannot be {length}')
    return math.prod(shape)


# JSON text.


def check_json(name: str, datatype: str, shape: Sequence[int], text: Buffer) -> None:
    """That `text`, valid JSON, holds as many elements as `shape` says, of the right kind.

    Numbers and booleans are not made into objects for that: in their text every comma separates two
    elements, at whatever depth of nesting. Raises InvalidArgument.
    """
    datatype_of(name, datatype)
    text = bytes(text)
    if datatype == "BYTES":
        count = sum(1 for _ in wire.flatten(decode(name, text)))
        # TorchServe's samples write [-1] for "as many as there are".
        expected = count if list(shape) == [-1] else element_count(name, shape)
    else:
        expected = element_count(name, shape)
        allowed, kind = _spelling(datatype)
        if text.translate(None, b" \t\r\n[]," + allowed):
            raise InvalidArgument(f'"{name}": the data of {datatype} must be {kind}')
        if _EMPTY_LIST.search(text):
            count = sum(1 for _ in wire.flatten(decode(name, text)))
        else:
            count = text.count(b",") + 1
    if count != expected:
        raise InvalidArgument(
            f'"{name}": the shape {list(shape)} stands for {expected} elements, data has {count}'
        )


def _spelling(datatype: str) -> tuple[bytes, str]:
    """The bytes that the JSON text of an element may have, and the word for such elements.

    An integer has no fraction and no exponent: a reader that cuts them off would make another
    number of it.
    """
    if datatype == "BOOL":
        return b"truefals01", "booleans"
    if DATATYPES[datatype].is_float:
        return b"0123456789eE+.-", "numbers"
    if datatype.startswith("U"):
        return b"0123456789", "integers from 0 up"
    return b"0123456789-", "integers"


def decode(name: str, text: Buffer) -> Any:
    """JSON text as values; Python's spellings of not-a-number and infinity are understood too.

    Raises InvalidArgument.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    except RecursionError:
        raise InvalidArgument(f'"{name}": the data is nested too deeply') from None
    try:
        return json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f'"{name}": the data is not JSON: {error}') from None


def to_json(datatype: str, values: Sequence[Any]) -> bytes:
    """The values as a flat JSON list; BYTES in base64, as TorchServe sends them to its workers."""
    if datatype == "BYTES":
        if not values:
            return b"[]"
        return b'["' + b'","'.join(map(base64.b64encode, values)) + b'"]'
    is_float = DATATYPES[datatype].is_float
    pieces = []
    for start in range(0, len(values), CHUNK):
        chunk = values[start : start + CHUNK]
        if is_float and not math.isfinite(sum(chunk)):
            # JSON has no such numbers; the worker reads Python's spelling of them.
            text = json.dumps(chunk, separators=(",", ":")).encode()
        else:
            text = msgspec.json.encode(chunk)
        pieces.append(text[1:-1])
    return b"[" + b",".join(pieces) + b"]"


# Raw bytes: row-major, little-endian, without padding.


def from_raw(name: str, datatype: str, count: int, raw: Buffer) -> Sequence[Any]:
    """The elements in `raw`, which must be exactly `count`. Raises InvalidArgument."""
    datatype_of(name, datatype)
    try:
        return wire.unpack(datatype, count, raw)
    except ValueError as error:
        raise InvalidArgument(f'"{name}": {error}') from None


def check_raw(name: str, datatype: str, shape: Sequence[int], raw: Buffer) -> None:
    """That `raw` holds the elements that `shape` stands for. Raises InvalidArgument."""
    datatype_of(name, datatype)
    try:
        wire.check_raw(datatype, element_count(name, shape), raw)
    except ValueError as error:
        raise InvalidArgument(f'"{name}": {error}') from None


def to_raw(datatype: str, values: Sequence[Any]) -> bytes:
    """Raises ValueError, TypeError or OverflowError where a value does not fit the datatype."""
    if datatype == "BYTES":
        return wire.pack_bytes(map(as_bytes, values))
    if datatype == "BOOL":
        return bytes(map(bool, values))
    if datatype == "BF16":
        return _to_bf16(values)
    if datatype == "FP16":
        return struct.pack(f"<{len(values)}e", *values)
    packed = array.array(DATATYPES[datatype].code, values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def as_bytes(value: Any) -> bytes:
    """An element of a BYTES answer: bytes and text as they are, anything else as its JSON text."""
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _to_bf16(values: Sequence[Any]) -> bytes:
    wide = struct.pack(f"<{len(values)}f", *values)
    if any(wide[0::4]) or any(wide[1::4]):
        wide = struct.pack(f"<{len(values)}I", *map(_round_to_bf16, _words(wide)))
    narrow = bytearray(len(wide) // 2)
    narrow[0::2] = wide[2::4]
    narrow[1::2] = wide[3::4]
    return bytes(narrow)


def _words(wide: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(wide) // 4}I", wide)


def _round_to_bf16(word: int) -> int:
    """A FP32's bits, rounded to the nearest with an empty lower half, ties to even."""
    if word & 0x7FFFFFFF > 0x7F800000:
        return word | 0x00400000  # not a number stays none
    return word + 0x7FFF + (word >> 16 & 1)
