"""Envelope `body`: the handler gets what the requests carry, without the field names."""

from __future__ import annotations

from typing import Any

from ts.torch_handler.request_envelope.base import BaseEnvelope


class BodyEnvelope(BaseEnvelope):
    """Takes `data` or `body` out of each request; answers go out as they are."""

    def parse_input(self, data: list[dict[str, Any]]) -> list[Any]:
        """The value of each request, None if it has neither field."""
        return [row.get("data") or row.get("body") for row in data]

    def format_output(self, data: Any) -> Any:
        """The answers, unchanged."""
        return data

    def _formatted(self, results: Any) -> Any:
        return results  # of any kind: a generator, or something to be awaited
