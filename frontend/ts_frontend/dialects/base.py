"""What a dialect is: one public API, as routes over the planes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ts_frontend.control_plane import ControlPlane
from ts_frontend.core.sequence_queue import SequenceHeaders
from ts_frontend.data_plane import DataPlane
from ts_frontend.health import Health
from ts_frontend.http.request import Handler, HttpRequest
from ts_frontend.http.router import Route
from ts_frontend.rollout.rollouts import Rollouts
from ts_frontend.tokens import KeyKind, TokenAuthority

if TYPE_CHECKING:
    from ts_frontend.grpc.service import Service


@dataclass(frozen=True, slots=True)
class Planes:
    """All that a dialect may touch."""

    data: DataPlane
    control: ControlPlane
    rollouts: Rollouts
    health: Health
    tokens: TokenAuthority | None  # None: no authorization
    render_metrics: Callable[[Sequence[str]], bytes]
    version: str
    has_local_times: bool = False  # TorchServe's dialect prints them, and marks them as UTC
    has_torchserve_grpc_errors: bool = False  # its inference service's own, mostly INTERNAL
    has_grpc_metadata: bool = True  # handlers get a call's metadata as headers
    is_model_api_enabled: bool = True
    is_open_inference_enabled: bool = False
    max_multipart_parts: int = 1000
    max_body_bytes: int = 6553500  # also of a body that came compressed, once it is unpacked
    min_compressed_bytes: int = 0  # of an answer, for clients that accept it; 0: never
    sequence_headers: SequenceHeaders = field(default_factory=SequenceHeaders)


@dataclass(frozen=True, slots=True)
class HttpRoutes:
    """The routes of one dialect by the listener that serves them; the order is the priority."""

    inference: Sequence[Route] = field(default_factory=tuple)
    management: Sequence[Route] = field(default_factory=tuple)
    metrics: Sequence[Route] = field(default_factory=tuple)

    def __add__(self, other: HttpRoutes) -> HttpRoutes:
        return HttpRoutes(
            (*self.inference, *other.inference),
            (*self.management, *other.management),
            (*self.metrics, *other.metrics),
        )


@dataclass(frozen=True, slots=True)
class GrpcServices:
    """The gRPC services of one dialect by the port that serves them."""

    inference: Sequence[Service] = field(default_factory=tuple)
    management: Sequence[Service] = field(default_factory=tuple)

    def __add__(self, other: GrpcServices) -> GrpcServices:
        return GrpcServices(
            (*self.inference, *other.inference), (*self.management, *other.management)
        )


def guarded(handler: Handler, tokens: TokenAuthority | None, kind: KeyKind) -> Handler:
    """`handler`, for requests that bring the key of `kind` only; else InvalidKey."""
    if tokens is None:
        return handler

    def check_first(request: HttpRequest) -> Awaitable[None] | None:
        tokens.check(kind, request.header(b"authorization"))
        return handler(request)

    return check_first


class Dialect(Protocol):
    name: str

    def http_routes(self, planes: Planes) -> HttpRoutes: ...

    def grpc_services(self, planes: Planes) -> GrpcServices:
        """Called only if a gRPC port is to be opened: what it needs is imported inside."""
        ...
