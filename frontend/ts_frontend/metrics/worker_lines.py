"""Metric lines that workers and collectors print.

    [METRICS]PredictionTime.ms:12.34|#ModelName:m,Level:Model|#type:GAUGE|#hostname:h,1700000000,id

Source: contract, runtime document, section 5, "Parsing backend lines". What a worker prints is not
to be trusted, so the pattern takes linear time: where TorchServe's pattern could share a run of
blanks between two neighbours, a possessive quantifier gives it all to the first.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_PREFIX = re.compile(r"(?:INFO > )?\[METRICS\](.*)", re.DOTALL)
_LINE = re.compile(
    r"\s*+([\w\s]++)\.([\w\s]++):([0-9\-,.e]++)"
    r"\|#([^|]*+)"
    r"(?:\|#type:([^|,]++))?+"
    r"\|#hostname:([^,]++),([^,]++)(?:,(.*))?",
    re.ASCII,
)


class WorkerMetric(NamedTuple):
    """dimensions: (name, value) pairs as printed. kind: as printed, "" where the line has none."""

    name: str
    unit: str
    value: float
    dimensions: tuple[tuple[str, str], ...]
    kind: str
    hostname: str
    request_ids: str | None


def metric_text(line: str) -> str | None:
    """What follows the mark of a metric line; None for every other line."""
    # Nearly all lines are ordinary output: this test is all they cost.
    if "[METRICS]" not in line:
        return None
    match = _PREFIX.fullmatch(line)
    return match[1] if match else None


def parse_metric_line(text: str) -> WorkerMetric | None:
    """A metric from a line without its mark, None if it does not fit the pattern."""
    match = _LINE.fullmatch(text.rstrip("\r\n"))
    if match is None:
        return None
    name, unit, number, pairs, kind, hostname, _timestamp, request_ids = match.groups()
    try:
        value = float(number)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    dimensions = []
    for pair in pairs.split(","):
        parts = pair.split(":")
        if len(parts) == 2:
            dimensions.append((parts[0], parts[1]))
    return WorkerMetric(name, unit, value, tuple(dimensions), kind or "", hostname, request_ids)
