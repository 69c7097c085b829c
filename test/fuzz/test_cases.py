"""What once broke a reader of hostile bytes, and what the search for more begins with."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.run import CASES, TARGET_NAMES
from fuzz.targets import TARGETS
from fuzzing import fuzzed
from hypothesis import given
from hypothesis import strategies as st

FLIPS = st.lists(st.tuples(st.integers(0, 2**13), st.binary(max_size=4)), max_size=5)


def test_every_target_has_a_name_for_the_command() -> None:
    assert set(TARGETS) == set(TARGET_NAMES)
    assert {folder.name for folder in CASES.iterdir()} <= set(TARGETS)


@pytest.mark.parametrize("case", sorted(CASES.glob("*/*")), ids=lambda case: case.stem[:24])
def test_a_kept_case_breaks_nothing(case: Path) -> None:
    TARGETS[case.parent.name].check(case.read_bytes())


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_the_seeds_break_nothing(name: str) -> None:
    for seed in TARGETS[name].seeds():
        TARGETS[name].check(seed)


@pytest.mark.parametrize("name", TARGET_NAMES)
@fuzzed
@given(number=st.integers(0, 100), flips=FLIPS, lost=st.integers(0, 30))
def test_damaged_seeds_break_nothing(name: str, number: int, flips, lost: int) -> None:
    seeds = list(TARGETS[name].seeds())
    data = bytearray(seeds[number % len(seeds)])
    for position, value in flips:
        place = position % (len(data) + 1)
        data[place : place + len(value)] = value
    TARGETS[name].check(bytes(data[: len(data) - lost]))
