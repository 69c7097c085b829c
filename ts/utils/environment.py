"""Numbers in environment variables."""

from __future__ import annotations

import math
import os


def env_number(name: str, default: float) -> float:
    """The variable's number, at least 0; the default if it is unset or empty.

    Raises ValueError that names the variable and what it may be.
    """
    text = os.environ.get(name, "").strip()
    try:
        number = float(text) if text else default
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(
            f"the environment variable {name} must be a number of at least 0 (unset or empty: "
            f"{default:g}), not {text[:64]!r}"
        )
    return number
