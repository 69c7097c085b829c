"""Amounts of memory as people write them."""

from __future__ import annotations

import pytest

from ts_frontend.settings import ConfigurationError
from ts_frontend.settings.amounts import machine_bytes, memory_budget_bytes

AMOUNTS = [
    ("", 0),
    (" ", 0),
    ("1024", 1024),
    ("800MB", 800 << 20),
    ("800 MiB", 800 << 20),
    ("16g", 16 << 30),
    ("1.5K", 1536),
    ("2TB", 2 << 40),
]


@pytest.mark.parametrize(("text", "amount"), AMOUNTS)
def test_amounts(text: str, amount: int) -> None:
    assert memory_budget_bytes(text) == amount


def test_a_share_is_of_the_machines_memory() -> None:
    assert memory_budget_bytes("50%") == pytest.approx(machine_bytes() / 2, abs=1)
    assert machine_bytes() > 1 << 20


@pytest.mark.parametrize("text", ["much", "-1", "1 apple", "101%", "%", "1e9"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ConfigurationError, match="model_memory_budget"):
        memory_budget_bytes(text)
