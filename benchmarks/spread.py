"""A few figures of the same kind, and what can honestly be said about them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """median [low..high] of `size` figures."""

    median: float
    low: float
    high: float
    size: int

    @classmethod
    def of(cls, figures: Iterable[float]) -> Spread | None:
        """None of no figures."""
        known = sorted(figures)
        if not known:
            return None
        return cls(statistics.median(known), known[0], known[-1], len(known))


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The figure below which `fraction` of them lie; 0 of none. ordered: ascending."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


def significant(figure: float, digits: int = 3) -> str:
    """`figure` for a table: 3 digits, thousands with commas, no exponents."""
    if figure == 0:
        return "0"
    if abs(figure) >= 10 ** (digits - 1):
        return f"{figure:,.0f}"
    text = f"{figure:.{digits}g}"
    return f"{figure:.6f}" if "e" in text else text
