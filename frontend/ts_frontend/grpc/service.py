"""What a dialect hands to a gRPC server."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import grpc

from ts_frontend.core.errors import ServingError


class Status(NamedTuple):
    """How a call ends: the code, and a text for people."""

    code: grpc.StatusCode
    text: str


class Service(NamedTuple):
    """One gRPC service with its servicer.

    name:       the full name, "package.Service".
    add_to:     registers it: the generated `add_..._to_server`, bound to the servicer.
    status_of:  the error table of the service's dialect.
    """

    name: str
    add_to: Callable[[grpc.aio.Server], None]
    status_of: Callable[[ServingError], Status]
