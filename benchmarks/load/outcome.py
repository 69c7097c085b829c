"""What a load client saw."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.spread import percentile

_MARK = "OUTCOME "


class LoadFailed(Exception):
    """The client itself could not do its work; `str(error)` has its words."""


@dataclass(frozen=True)
class Outcome:
    """requests: answered rightly, as far as the client looks. errors: kind -> how many."""

    client: str
    requests: int
    seconds: float
    errors: dict[str, int] = field(default_factory=dict)
    p50_ms: float = 0.0
    p90_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    first_chunk_p50_ms: float = 0.0
    first_chunk_p99_ms: float = 0.0
    chunks: int = 0  # pieces of the answers as they came over the wire

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def failures(self) -> int:
        return sum(self.errors.values())

    def line(self) -> str:
        """For a client to print; `parse` finds it among other output."""
        return _MARK + json.dumps(asdict(self))


def parse(output: str) -> Outcome:
    """Raises LoadFailed where the output holds no outcome."""
    for line in reversed(output.splitlines()):
        if line.startswith(_MARK):
            fields: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            fields["errors"] = {kind: count for kind, count in fields["errors"].items() if count}
            return Outcome(**fields)
    raise LoadFailed(f"the client said nothing of use: {output.strip()[-300:]!r}")


def latencies(milliseconds: list[float]) -> dict[str, float]:
    """The fields of an Outcome that describe these; sorts the list."""
    milliseconds.sort()
    return {
        "p50_ms": percentile(milliseconds, 0.5),
        "p90_ms": percentile(milliseconds, 0.9),
        "p99_ms": percentile(milliseconds, 0.99),
        "max_ms": milliseconds[-1] if milliseconds else 0.0,
    }
