"""Conversions beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

# From here on a conversion takes milliseconds; it then runs in a thread, in pieces.
OFFLOAD_BYTES = 128 * 1024

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def offloaded(
    size: int, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """What `function` returns; in a thread if its work, `size` bytes, would hold up the others."""
    if size < OFFLOAD_BYTES:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
