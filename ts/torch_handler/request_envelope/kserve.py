"""Envelope `kserve`: KServe's V1 protocol.

`{"instances": [...]}` (or `inputs`, its other name) in, `{"predictions": [...]}` or
`{"explanations": [...]}` out.
"""

from __future__ import annotations

from typing import Any

from ts.torch_handler.request_envelope.base import BaseEnvelope, request_body, rows_of
from ts.torch_handler.request_envelope.json import decode_instances


class KServeEnvelope(BaseEnvelope):
    """Gives the handler the instances of all requests of the batch as one list.

    Bytes that came as `{"b64": text}` are decoded: an instance, or a member of one.
    """

    def parse_input(self, data: list[Any]) -> list[Any]:
        """The instances of all requests."""
        instances_per_request = [_instances(request_body(row)) for row in data]
        self._row_counts = [len(instances) for instances in instances_per_request]
        return [instance for instances in instances_per_request for instance in instances]

    def format_output(self, data: Any) -> list[dict[str, Any]]:
        """Per request, its results as predictions or, if it asked for them, explanations."""
        key = "explanations" if self._has_true_header("explain") else "predictions"
        return [{key: share} for share in self._split_rows(data)]


def _instances(body: Any) -> list[Any]:
    has_inputs = isinstance(body, dict) and "instances" not in body and "inputs" in body
    return decode_instances(rows_of(body, "inputs" if has_inputs else "instances"))
