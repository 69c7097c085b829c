"""Amounts of memory as people write them."""

from __future__ import annotations

import contextlib
import os
import re

from ts_frontend.settings.settings import ConfigurationError

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[KMGT]?i?B?)", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def memory_budget_bytes(text: str) -> int:
    """Bytes of `model_memory_budget`; 0 for an empty text. Units are powers of 1024.

    Raises ConfigurationError.
    """
    text = text.strip()
    if not text:
        return 0
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"model_memory_budget: {text!r} should be bytes, an amount such as 800MB or 16GB, or a "
            "share of the machine's memory such as 60%"
        )
    number, unit = float(match[1]), match[2].upper()
    if unit == "%":
        if number > 100:
            raise ConfigurationError(f"model_memory_budget: {text!r} is more than all memory")
        return int(number / 100 * machine_bytes())
    return int(number * 1024 ** _POWERS[unit.rstrip("B").rstrip("I")])


def machine_bytes() -> int:
    """The memory of the machine, or of the container if that has less."""
    amount = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            amount = min(amount, int(file.read()))
    return amount
