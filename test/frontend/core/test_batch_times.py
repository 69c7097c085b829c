"""What is learned of batch times: curves found again from noisy samples, and odd ones forgotten."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.core.batch_times import BatchTimes


def learned(*samples: tuple[int, float], rounds: int = 20) -> BatchTimes:
    times = BatchTimes()
    for _ in range(rounds):
        for size, seconds in samples:
            times.add(size, seconds)
    return times


def test_nothing_is_known_before_the_first_batch() -> None:
    assert BatchTimes().predict_s(1) is None


# What was learned, what is asked, what is expected.
CURVES = [
    ([(1, 0.1)], 1, 0.1),
    ([(4, 0.1)], 2, 0.1),  # smaller than any seen: no faster
    ([(4, 0.1)], 8, 0.2),  # larger than any seen: in proportion
    ([(1, 0.1), (5, 0.3)], 3, 0.2),
    ([(1, 0.1), (5, 0.3)], 10, 0.6),
    ([(2, 0.3), (4, 0.1)], 2, 0.2),  # a larger batch is never faster
    ([(2, 0.3), (4, 0.1)], 4, 0.2),
]


@pytest.mark.parametrize(("samples", "size", "seconds"), CURVES)
def test_the_curve_between_and_beyond(
    samples: list[tuple[int, float]], size: int, seconds: float
) -> None:
    assert learned(*samples).predict_s(size) == pytest.approx(seconds)


@pytest.mark.parametrize("per_item_s", [0.0, 0.001, 0.02])
def test_a_straight_curve_is_found_through_noise(per_item_s: float) -> None:
    noise = random.Random(7)
    times = BatchTimes()
    for _ in range(2000):
        size = noise.randint(1, 64)
        times.add(size, (0.02 + per_item_s * size) * noise.uniform(0.8, 1.25))
    for size in (1, 3, 8, 20, 40, 64):
        assert times.predict_s(size) == pytest.approx(0.02 + per_item_s * size, rel=0.2)


def test_a_slow_first_batch_is_soon_outweighed() -> None:
    times = learned((1, 10.0), rounds=1)
    for _ in range(12):
        times.add(1, 0.01)
    predicted = times.predict_s(1)
    assert predicted is not None
    assert predicted < 0.02


def test_one_hiccup_counts_for_little() -> None:
    times = learned((1, 0.01))
    times.add(1, 60.0)
    assert times.predict_s(1) == pytest.approx(0.016)


def test_a_size_seen_once_is_forgotten_before_one_that_was_usual() -> None:
    times = learned((8, 0.08))
    times.add(16, 5.0)  # a hiccup
    for _ in range(51):
        times.add(8, 0.08)
    assert times.predict_s(16) == pytest.approx(0.16)  # in proportion: to be tried again


@given(
    st.lists(st.tuples(st.integers(1, 200), st.floats(1e-6, 100)), min_size=1, max_size=80),
)
def test_the_curve_never_falls(samples: list[tuple[int, float]]) -> None:
    times = learned(*samples, rounds=1)
    curve = [times.predict_s(size) or 0.0 for size in range(1, 257)]
    assert all(0 < low <= high * (1 + 1e-9) for low, high in itertools.pairwise(curve))


def test_repr_shows_the_curve() -> None:
    assert repr(learned((1, 0.01), (4, 0.02))) == "<BatchTimes 1: 10 ms, 4: 20 ms>"
