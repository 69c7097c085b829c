"""Envelope `json`: `{"instances": [...]}` in, `{"predictions": [...]}` out."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from ts.torch_handler.request_envelope.base import BaseEnvelope, request_body, rows_of
from ts.utils.util import PredictionException


class JSONEnvelope(BaseEnvelope):
    """Gives the handler the instances of all requests of the batch as one list.

    Instances of the form `{"b64": text}`, or columns of that form in instances that are objects,
    are decoded to bytes.
    """

    def parse_input(self, data: list[Any]) -> list[Any]:
        """The instances of all requests."""
        instances_per_request = [rows_of(request_body(row), "instances") for row in data]
        self._row_counts = [len(instances) for instances in instances_per_request]
        return [
            instance
            for instances in instances_per_request
            for instance in decode_instances(instances)
        ]

    def format_output(self, data: Any) -> list[str]:
        """Per request, a JSON text with its share of the predictions."""
        if len(self._row_counts) == 1:
            data = data[: self._row_counts[0]]
        return [json.dumps({"predictions": list(share)}) for share in self._split_rows(data)]


def decode_instances(instances: list[Any]) -> list[Any]:
    """The instances, with bytes in place of each `{"b64": text}`, if the first is an object.

    Raises PredictionException for what is no base64.
    """
    if not instances or not isinstance(instances[0], dict):
        return instances
    return [_decode_instance(instance) for instance in instances]


def _decode_instance(instance: Any) -> Any:
    if _is_base64(instance):
        return _decode(instance["b64"])
    if isinstance(instance, dict):
        return {
            name: _decode(value["b64"]) if _is_base64(value) else value
            for name, value in instance.items()
        }
    return instance


def _decode(text: Any) -> bytes:
    try:
        # Lines are common; anything else that is not of the alphabet would be skipped in silence.
        return b64decode("".join(text.split()), validate=True)
    except (AttributeError, TypeError, ValueError) as error:
        raise PredictionException(f"b64 is not base64: {error}", 400) from error


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}
