"""Lines of ts_metrics.log and model_metrics.log.

Source: contract, runtime document, section 5, "Log line".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal


def java_double(value: float) -> str:
    """`value` as Java prints a double, which readers of the logs and of /metrics are used to.

    At least one digit after the point; from 10^7 on and below 10^-3 scientific (`1.2E7`).
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    value = float(value)
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        # repr is positional from 1e-4 up to 1e16, and has a point.
        return repr(value)
    sign, digits, _ = Decimal(repr(value)).as_tuple()
    text = "".join(map(str, digits)).rstrip("0")
    exponent = Decimal(repr(value)).adjusted()
    return f"{'-' if sign else ''}{text[0]}.{text[1:] or '0'}E{exponent}"


def server_line(
    name: str,
    unit: str,
    value: float,
    dimensions: Sequence[str],
    labels: Sequence[str],
    timestamp: int,
) -> str:
    """The last label is the host, which is not repeated among the dimensions."""
    shown, host = _shown(dimensions, labels)
    return f"{name}.{unit}:{java_double(value)}|#{shown}|#hostname:{host},timestamp:{timestamp}"


def model_line(
    name: str,
    unit: str,
    value: float,
    dimensions: Sequence[str],
    labels: Sequence[str],
    request_ids: str | None,
    timestamp: int,
) -> str:
    """request_ids: as the worker gave them, None where its line had none."""
    shown, host = _shown(dimensions, labels)
    ids = "null" if request_ids is None else request_ids
    return (
        f"{name}.{unit}:{java_double(value)}|#{shown}"
        f"|#hostname:{host},requestID:{ids},timestamp:{timestamp}"
    )


def _shown(dimensions: Sequence[str], labels: Sequence[str]) -> tuple[str, str]:
    # A handler may give more or fewer values than were defined; the pairs that there are are shown.
    pairs = zip(dimensions[:-1], labels[:-1], strict=False)
    return ",".join(f"{name}:{label}" for name, label in pairs), labels[-1] if labels else ""
