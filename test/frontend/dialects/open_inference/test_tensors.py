"""Elements between JSON text, raw bytes and values: both ways, and against every false claim."""

from __future__ import annotations

import base64
import json
import math
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts.protocol.tensors import flatten
from ts_frontend.core.errors import InvalidArgument
from ts_frontend.dialects.open_inference import tensors
from ts_frontend.dialects.open_inference.schema import DATATYPES

FLOATS = {"FP16": 16, "FP32": 32, "FP64": 64}


def values_of(datatype: str) -> st.SearchStrategy:
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text()
    if datatype == "BF16":
        return st.integers(0, 0xFFFF).map(bf16).filter(lambda value: not math.isnan(value))
    if datatype in FLOATS:
        return st.floats(width=FLOATS[datatype])
    bits = 8 * DATATYPES[datatype].size
    if datatype.startswith("U"):
        return st.integers(0, 2**bits - 1)
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def bf16(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


def same(left: list, right: list) -> bool:
    return len(left) == len(right) and all(
        a == b or (a != a and b != b) for a, b in zip(left, right, strict=True)
    )


TENSORS = st.sampled_from(sorted(DATATYPES)).flatmap(
    lambda datatype: st.tuples(st.just(datatype), st.lists(values_of(datatype), max_size=20))
)


@given(TENSORS)
def test_raw_there_and_back(tensor) -> None:
    datatype, values = tensor
    raw = tensors.to_raw(datatype, values)
    if datatype == "BYTES":
        values = [value.encode() for value in values]
    else:
        assert len(raw) == len(values) * DATATYPES[datatype].size
    assert same(list(tensors.from_raw("t", datatype, len(values), raw)), values)


@given(TENSORS)
def test_json_is_what_the_worker_reads(tensor) -> None:
    datatype, values = tensor
    if datatype == "BYTES":
        values = [value.encode() for value in values]
        read = [base64.b64decode(text) for text in json.loads(tensors.to_json(datatype, values))]
    else:
        read = json.loads(tensors.to_json(datatype, values))
    assert same(read, values)


@given(st.lists(st.floats(width=32), min_size=1, max_size=9))
def test_chunks_join_to_one_list(values) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "CHUNK", 2)
        assert same(json.loads(tensors.to_json("FP32", values)), values)


@given(TENSORS, st.data())
def test_any_other_length_of_raw_is_refused(tensor, data) -> None:
    datatype, values = tensor
    raw = tensors.to_raw(datatype, values)
    cut = data.draw(st.integers(0, len(raw)))
    wrong = data.draw(st.sampled_from([raw[:cut], raw + b"\0", raw + raw]))
    if len(wrong) == len(raw):
        return
    with pytest.raises(InvalidArgument):
        tensors.from_raw("t", datatype, len(values), wrong)


@given(st.binary(max_size=60), st.integers(0, 2**70))
def test_bytes_never_claim_more_than_there_is(raw: bytes, count: int) -> None:
    try:
        elements = tensors.from_raw("t", "BYTES", count, raw)
    except InvalidArgument:
        return
    assert sum(4 + len(element) for element in elements) == len(raw)
    assert len(elements) == count


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
@pytest.mark.parametrize("count", [2**40, 2**63, 2**64 + 1, 2**200])
def test_cve_2026_24173_a_huge_claim_allocates_nothing(datatype: str, count: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument):
            tensors.from_raw("t", datatype, count, b"12345678")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


# BF16.


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.5, 0xC020),
        (0.0, 0x0000),
        (-0.0, 0x8000),
        (math.inf, 0x7F80),
        (-math.inf, 0xFF80),
        (3.3895313892515355e38, 0x7F7F),  # the largest
        # Rounded: half goes to the even neighbour.
        (1.00390625, 0x3F80),
        (1.01171875, 0x3F82),
        (1.005, 0x3F81),
        (3.4e38, 0x7F80),  # nearer to what would follow the largest
        (1e-45, 0x0000),
    ],
)
def test_bf16_is_rounded(value: float, bits: int) -> None:
    assert tensors.to_raw("BF16", [value]) == struct.pack("<H", bits)


def test_bf16_keeps_not_a_number() -> None:
    hidden_in_the_lower_half = struct.unpack("<f", b"\x01\x00\x80\x7f")[0]
    for value in (math.nan, -math.nan, hidden_in_the_lower_half):
        raw = tensors.to_raw("BF16", [value])
        assert math.isnan(tensors.from_raw("t", "BF16", 1, raw)[0])


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_is_the_nearest(value: float) -> None:
    raw = tensors.to_raw("BF16", [value])
    (got,) = tensors.from_raw("t", "BF16", 1, raw)
    (bits,) = struct.unpack("<H", raw)
    if math.isinf(got):
        assert abs(value) > 3.3895313892515355e38
        return
    for neighbour in (bits - 1, bits + 1):
        if 0 <= neighbour <= 0xFFFF and math.isfinite(bf16(neighbour)):
            assert abs(got - value) <= abs(bf16(neighbour) - value)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("INT8", [128]),
        ("UINT8", [-1]),
        ("INT64", [2**63]),
        ("UINT64", [-1]),
        ("INT32", [1.5]),
        ("INT32", ["1"]),
        ("FP32", ["1"]),
        ("FP32", [None]),
        ("FP64", [[1]]),
    ],
)
def test_a_value_that_does_not_fit_is_an_error(datatype: str, values: list) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        tensors.to_raw(datatype, values)


def test_elements_of_bytes_that_are_no_text_keep_their_json() -> None:
    assert tensors.to_raw("BYTES", ["a", 5, {"b": [1]}]) == (
        b"\x01\0\0\0a" + b"\x01\0\0\x005" + b'\x09\0\0\0{"b":[1]}'
    )


# Shapes.


@pytest.mark.parametrize(
    ("shape", "count"), [([], 1), ([0], 0), ([2, 3], 6), ([2**62, 2**62], 2**124), ([5, 0, 7], 0)]
)
def test_element_count(shape: list[int], count: int) -> None:
    assert tensors.element_count("t", shape) == count


@pytest.mark.parametrize("shape", [[-1], [2, -3], [2**63], [1] * 65, [-(2**63)]])
def test_impossible_shapes(shape: list[int]) -> None:
    with pytest.raises(InvalidArgument, match='"t"'):
        tensors.element_count("t", shape)


# JSON of clients.


@pytest.mark.parametrize(
    ("datatype", "shape", "text"),
    [
        ("FP32", [2, 2], "[1, 2.5, -3e-2, 4]"),
        ("FP32", [2, 2], " [ [1,2] , [3,4] ] "),
        ("FP32", [], "7"),
        ("FP32", [1], "[7]"),
        ("FP32", [0], "[]"),
        ("FP32", [2, 0], "[[],[]]"),
        ("INT64", [1], "[9223372036854775807]"),
        ("INT8", [2], "[-128, 127]"),
        ("UINT8", [2], "[0, 255]"),
        ("BOOL", [3], "[true,false,1]"),
        ("BYTES", [2], '["a,b","[c]"]'),
        ("BYTES", [-1], '["a","b"]'),
        ("BYTES", [-1], '"all of it"'),
        ("BYTES", [1], '"one"'),
        ("BYTES", [1, 2], '[["a", "b"]]'),
        ("BYTES", [0], "[]"),
        ("BF16", [1], "[1.5]"),
    ],
)
def test_json_that_fits(datatype: str, shape: list[int], text: str) -> None:
    tensors.check_json("t", datatype, shape, text.encode())


@pytest.mark.parametrize(
    ("datatype", "shape", "text"),
    [
        ("FP32", [2, 2], "[1,2,3]"),
        ("FP32", [3], "[1,2,3,4]"),
        ("FP32", [1], "[]"),
        ("FP32", [0], "[1]"),
        ("FP32", [3], "[[1],[],[2]]"),
        ("FP32", [2, 0], "[[],[1]]"),
        ("FP32", [1], '["1"]'),
        ("FP32", [1], "[null]"),
        ("FP32", [1], "[true]"),
        ("FP32", [1], "{}"),
        ("FP32", [-1], "[1]"),
        ("FP32", [2**40], "[1]"),
        ("FP32", [2**62, 4], "[1]"),
        # An integer that is cut off to fit would be another number.
        ("INT32", [1], "[1.5]"),
        ("INT32", [1], "[1e3]"),
        ("UINT64", [1], "[1.0]"),
        ("UINT8", [1], "[-1]"),
        ("BOOL", [1], "[2]"),
        ("BOOL", [1], '["true"]'),
        ("BYTES", [2], '["a,b"]'),
        ("BYTES", [2, -1], '["a"]'),
        ("BYTES", [-2], '["a"]'),
        ("STRING", [1], '["a"]'),
        ("", [1], "[1]"),
    ],
)
def test_json_that_does_not_fit(datatype: str, shape: list[int], text: str) -> None:
    with pytest.raises(InvalidArgument, match='"t"'):
        tensors.check_json("t", datatype, shape, text.encode())


NESTED = st.recursive(st.integers(-9, 9), lambda inner: st.lists(inner, max_size=4), max_leaves=30)


@given(NESTED)
def test_counting_commas_counts_elements(data) -> None:
    """The short way agrees with looking at every element."""
    count = sum(1 for _ in flatten(data))
    for separators in ((",", ":"), (" , ", ":")):
        text = json.dumps(data, separators=separators).encode()
        tensors.check_json("t", "FP32", [count], text)
        with pytest.raises(InvalidArgument):
            tensors.check_json("t", "FP32", [count + 1], text)


def test_pythons_spelling_of_no_number_is_read() -> None:
    assert same(tensors.decode("t", b"[NaN, -Infinity]"), [math.nan, -math.inf])
    for text in (b"[nan]", b"\xff", b"[" * 100_000):
        with pytest.raises(InvalidArgument):
            tensors.decode("t", text)
