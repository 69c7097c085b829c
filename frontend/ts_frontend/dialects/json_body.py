"""JSON as TorchServe writes it."""

from __future__ import annotations

from typing import Any

import msgspec

from ts_frontend.http.request import HttpRequest

JSON = b"application/json"


def pretty_json(value: Any) -> bytes:
    """Two spaces, nulls left out (by the schema), one newline at the end."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def respond_json(request: HttpRequest, value: Any, status: int = 200) -> None:
    request.respond(status, pretty_json(value), content_type=JSON)
