"""Tensors over the bytes that were received."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import torch

from ts.handler_utils import tensors
from ts.protocol.tensors import ELEMENTS

SIZES = {name: size for name, (size, _) in ELEMENTS.items() if size}


def address(value: Any) -> int:
    return value.data_ptr() if isinstance(value, torch.Tensor) else value.ctypes.data


@pytest.mark.parametrize("datatype", SIZES)
@pytest.mark.parametrize("read", [tensors.torch_tensor, tensors.numpy_array])
def test_a_tensor_lies_over_its_bytes(read, datatype: str) -> None:
    if (read, datatype) == (tensors.numpy_array, "BF16"):
        pytest.skip("numpy has no such type: it is widened")
    size = SIZES[datatype]
    raw = bytearray(6 * size)
    value = read(datatype, [2, 3], raw)
    assert tuple(value.shape) == (2, 3)
    assert address(value) == np.frombuffer(raw, np.uint8).ctypes.data
    value[1, 2] = 1  # and is writable
    assert any(raw[5 * size :])
    assert not any(raw[: 5 * size])


@pytest.mark.parametrize(
    "value", [torch.arange(6.0).reshape(2, 3), np.arange(6, dtype="float32").reshape(2, 3)]
)
def test_the_bytes_of_an_answer_are_its_tensors(value) -> None:
    encoded = tensors.encode(value)
    assert (encoded.datatype, encoded.shape) == ("FP32", [2, 3])
    raw = memoryview(encoded.raw())
    assert raw == struct.pack("<6f", *range(6))
    assert np.frombuffer(raw, np.uint8).ctypes.data == address(value)


@pytest.mark.parametrize("read", [tensors.torch_tensor, tensors.numpy_array])
@pytest.mark.parametrize("shape", [[0], [0, 2**40], [2**40, 0], [0, 2**62, 2**62]])
def test_no_elements_take_no_memory(read, shape: list[int]) -> None:
    try:
        value = read("FP32", shape, bytearray())
    except (ValueError, RuntimeError):
        return  # more than the library can count
    assert list(value.shape) == shape
