"""Tensors of the Open Inference Protocol as torch tensors or numpy arrays, and back to bytes.

Neither library is imported before a tensor of its kind is wanted or met.
"""

from __future__ import annotations

import ctypes
import json
import math
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ts.protocol.frames import Buffer
from ts.protocol.tensors import ELEMENTS, check_raw, pack_bytes, unpack, widen_bf16

# Names of torch's and numpy's element types, which agree but for BF16, which numpy has not.
_NAMES = {
    "BOOL": "bool",
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
}
_DATATYPES = {name: datatype for datatype, name in _NAMES.items()}


class EncodedTensor(NamedTuple):
    """elements: raw bytes; for BYTES the elements themselves."""

    datatype: str
    shape: list[int]
    elements: Any

    def raw(self) -> Buffer:
        """The protocol's raw form; a view of a tensor lives as long as that."""
        return pack_bytes(self.elements) if self.datatype == "BYTES" else self.elements

    def values(self) -> list[Any]:
        """The elements, flat, as JSON has them; bytes that are no text become Latin-1 text."""
        if self.datatype == "BYTES":
            return [_as_text(element) for element in self.elements]
        return list(unpack(self.datatype, math.prod(self.shape), self.elements))


def torch_tensor(datatype: str, shape: Sequence[int], raw: bytearray) -> Any:
    """A torch tensor over `raw`, which is not copied and must not change size while it lives.

    BYTES have no tensor: they become a flat list. Raises ValueError where `raw` does not fit.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return unpack(datatype, count, raw)
    import torch

    check_raw(datatype, count, raw)
    dtype = getattr(torch, _NAMES[datatype])
    if not count:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype).reshape(tuple(shape))


def numpy_array(datatype: str, shape: Sequence[int], raw: bytearray) -> Any:
    """A numpy array over `raw`; as `torch_tensor`, but BF16 is widened to float32, with a copy."""
    count = math.prod(shape)
    if datatype == "BYTES":
        return unpack(datatype, count, raw)
    import numpy as np

    check_raw(datatype, count, raw)
    if datatype == "BF16":
        return np.frombuffer(widen_bf16(raw), "<f4").reshape(shape)
    return np.frombuffer(raw, _NAMES[datatype]).reshape(shape)


def torch_from_values(datatype: str, shape: Sequence[int], values: list[Any]) -> Any:
    """A torch tensor of Python values, flat. Raises ValueError, TypeError, OverflowError or
    RuntimeError where one does not fit.
    """
    import torch

    return torch.tensor(values, dtype=getattr(torch, _NAMES[datatype])).reshape(tuple(shape))


def numpy_from_values(datatype: str, shape: Sequence[int], values: list[Any]) -> Any:
    """As `torch_from_values`, with numpy."""
    import numpy as np

    return np.array(values, "float32" if datatype == "BF16" else _NAMES[datatype]).reshape(shape)


def encode(value: Any, datatype: str | None = None) -> EncodedTensor:
    """Any result of a handler as a tensor.

    A tensor or an array keeps its type and shape. Numbers and booleans in lists of equal lengths
    become one of INT64, FP64 or BOOL; text and bytes become BYTES; whatever else, BYTES of JSON.

    datatype: for numbers that have none of their own.
    Raises ValueError or TypeError for what has no such form.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _encode_torch(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return _encode_numpy(numpy.asarray(value))
    if not isinstance(value, list | tuple):
        value = [value]
    shape, flat = _flattened(value)
    found = _datatype_of(flat)
    if found == "BYTES":
        if not all(isinstance(leaf, str | bytes | bytearray) for leaf in flat):
            shape, flat = [len(value)], list(value)
        return EncodedTensor(found, shape, [_as_element(item) for item in flat])
    if datatype not in _NAMES or datatype == "BF16":
        datatype = found
    try:
        raw = struct.pack(f"<{len(flat)}{ELEMENTS[datatype][1]}", *flat)
    except struct.error as error:
        raise ValueError(f"a value does not fit {datatype}: {error}") from None
    return EncodedTensor(datatype, shape, raw)


def stacked(values: list[Any]) -> Any:
    """Results of single rows as one value with the rows as first dimension."""
    first = values[0] if values else None
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(first, torch.Tensor):
        return torch.stack(values)
    if numpy is not None and isinstance(first, numpy.ndarray | numpy.generic):
        return numpy.stack(values)
    return values


def _encode_torch(value: Any) -> EncodedTensor:
    value = value.detach().cpu().contiguous()
    datatype = _DATATYPES.get(str(value.dtype).removeprefix("torch."))
    if datatype is None:
        raise TypeError(f"the protocol has no datatype for {value.dtype}")
    size = value.numel() * value.element_size()
    view = (ctypes.c_ubyte * size).from_address(value.data_ptr())
    view.tensor = value  # torch owns the memory, the view keeps it
    return EncodedTensor(datatype, list(value.shape), view)


def _encode_numpy(value: Any) -> EncodedTensor:
    if value.dtype.kind in "OSU":
        return EncodedTensor("BYTES", list(value.shape), [_as_element(x) for x in value.flat])
    datatype = _DATATYPES.get(value.dtype.name)
    if datatype is None:
        raise TypeError(f"the protocol has no datatype for {value.dtype}")
    little = value.astype(value.dtype.newbyteorder("<"), order="C", copy=False)
    return EncodedTensor(datatype, list(value.shape), little.reshape(-1).view("uint8").data)


def _flattened(value: list[Any] | tuple[Any, ...]) -> tuple[list[int], list[Any]]:
    """The shape of regularly nested lists and their leaves; lists of unequal lengths are leaves."""
    shape = [len(value)]
    flat = list(value)
    while flat and all(isinstance(item, list | tuple) for item in flat):
        lengths = {len(item) for item in flat}
        if len(lengths) != 1:
            break
        shape.append(lengths.pop())
        flat = [leaf for item in flat for leaf in item]
    return shape, flat


def _datatype_of(flat: list[Any]) -> str:
    kinds = {type(item) for item in flat}
    if kinds == {bool}:
        return "BOOL"
    if kinds and kinds <= {bool, int}:
        return "INT64" if all(-(2**63) <= item < 2**63 for item in flat) else "FP64"
    return "FP64" if kinds <= {bool, int, float} else "BYTES"


def _as_element(item: Any) -> bytes:
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    return item.encode() if isinstance(item, str) else json.dumps(item).encode()


def _as_text(element: bytes) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return element.decode("latin-1")
