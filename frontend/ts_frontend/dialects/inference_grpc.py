"""What the gRPC servicers of all dialects share."""

from __future__ import annotations

import base64
from typing import Any

import grpc

from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import ErrorKind
from ts_frontend.core.inference import Header
from ts_frontend.dialects.base import Planes
from ts_frontend.http.request import new_request_id as new_request_text

CODE_OF_KIND: dict[ErrorKind, grpc.StatusCode] = {
    ErrorKind.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.UNAUTHENTICATED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorKind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    ErrorKind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorKind.METHOD_NOT_ALLOWED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorKind.CONFLICT: grpc.StatusCode.ABORTED,
    ErrorKind.OVERLOADED: grpc.StatusCode.UNAVAILABLE,
    ErrorKind.THROTTLED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorKind.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.OUT_OF_MEMORY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.CANCELLED: grpc.StatusCode.CANCELLED,
    ErrorKind.MODEL_ERROR: grpc.StatusCode.INTERNAL,
    ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
}

MAX_ERROR_BYTES = 1000  # of an answer that its handler calls a failure, as the call's text

_STATUS_OF_HTTP = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    416: grpc.StatusCode.OUT_OF_RANGE,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def status_of_http(code: int) -> grpc.StatusCode:
    """The gRPC form of a failure that a worker reports as an HTTP status (contract, gRPC section
    5); never OK.
    """
    status = _STATUS_OF_HTTP.get(code)
    if status is not None:
        return status
    if 400 <= code < 500:
        return grpc.StatusCode.FAILED_PRECONDITION
    return grpc.StatusCode.INTERNAL if 500 <= code < 600 else grpc.StatusCode.UNKNOWN


def deadline_s(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """When the client gives up, seconds on the monotonic clock; None: never."""
    left_s = context.time_remaining()
    return None if left_s is None else monotonic() + left_s


# What a library writes of itself, and the frontend's own words to a handler.
_NOT_THE_CALLERS = frozenset(["user-agent", "explain", "describe"])


def request_headers(context: grpc.aio.ServicerContext[Any, Any], planes: Planes) -> list[Header]:
    """The metadata of a call, as the headers that its handler sees.

    Values of `-bin` keys are in base64, as on the wire: headers are text. Left out are gRPC's own
    keys and, where this server asks for one, the caller's key to it.
    """
    if not planes.has_grpc_metadata:
        return []
    headers: list[Header] = []
    for key, value in context.invocation_metadata() or ():
        if key in _NOT_THE_CALLERS or key.startswith("grpc-"):
            continue
        if key == "authorization" and planes.tokens is not None:
            continue
        if isinstance(value, str):
            raw = value.encode()
        else:
            raw = base64.b64encode(value) if key.endswith("-bin") else value
        headers.append((key.encode(), raw))
    return headers


def new_request_id() -> bytes:
    return new_request_text().encode()
