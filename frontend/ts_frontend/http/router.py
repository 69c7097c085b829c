"""From a request to its handler.

Routes are tried in the order in which they were added; the first whose method and path match wins.
The decision is remembered per method and raw target, so that the many requests to few paths cost a
look-up.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ts_frontend.core.errors import ErrorKind, MethodNotAllowed, RouteNotFound, ServingError
from ts_frontend.http.openapi import Operation
from ts_frontend.http.request import Handler, HttpRequest, Target, split_target

logger = logging.getLogger(__name__)

ANY_METHOD = "*"

# The cache holds only targets that have a route, no query and a usual length, so that its memory is
# bounded (about 1 MiB) and requests to nowhere cannot push out the useful ones.
CACHED_TARGETS = 1024
CACHED_TARGET_BYTES = 256

TransportError = Callable[[int, str], bytes]

_SEGMENT = re.compile(r"([^{}]*)\{([A-Za-z_][A-Za-z0-9_]*)(\*?)\}([^{}]*)")


class _Segment(NamedTuple):
    """One segment of a pattern: literal text, or a capture between a prefix and a suffix."""

    literal: str
    is_capture: bool = False
    prefix: str = ""
    suffix: str = ""

    def match(self, segment: str) -> str | None:
        """What is captured; an empty capture is none."""
        if not segment.startswith(self.prefix) or not segment.endswith(self.suffix):
            return None
        end = len(segment) - len(self.suffix)
        return segment[len(self.prefix) : end] if end > len(self.prefix) else None


class Route:
    """One line of a routing table.

    method: upper case, or "*" for any. GET also serves HEAD.
    pattern: "/models/{model_name}"; a capture takes one whole segment, or what stands between
        literal text ("{model_name}:predict"). A last segment "{rest*}" takes all that is left, also
        nothing.
    transport_error: gives the body of an error that the handler never hears of, from (status,
        message); None: the listener's own form.
    """

    __slots__ = (
        "_has_tail",
        "_segments",
        "doc",
        "handler",
        "method",
        "pattern",
        "transport_error",
    )

    def __init__(
        self,
        method: str,
        pattern: str,
        handler: Handler,
        doc: Operation | None = None,
        transport_error: TransportError | None = None,
    ) -> None:
        self.method = method
        self.pattern = pattern
        self.handler = handler
        self.doc = doc
        self.transport_error = transport_error
        self._has_tail = False
        self._segments: list[_Segment] = []
        if not pattern.startswith("/"):
            raise ValueError(f"A route pattern starts with a slash: {pattern!r}")
        texts = pattern[1:].split("/") if pattern != "/" else []
        for index, text in enumerate(texts):
            if "{" not in text and "}" not in text:
                self._segments.append(_Segment(text))
                continue
            parsed = _SEGMENT.fullmatch(text)
            if parsed is None:
                raise ValueError(f"A route pattern has one {{name}} per segment: {pattern!r}")
            prefix, _, star, suffix = parsed.groups()
            if star:
                if prefix or suffix or index != len(texts) - 1:
                    raise ValueError(f"{{name*}} is a whole segment and the last one: {pattern!r}")
                self._has_tail = True
            else:
                self._segments.append(_Segment("", True, prefix, suffix))

    def __repr__(self) -> str:
        return f"<Route {self.method} {self.pattern}>"

    def match(self, segments: tuple[str, ...]) -> tuple[str, ...] | None:
        """The captured texts if the path fits; a tail is captured as one text with slashes."""
        own = self._segments
        count = len(own)
        if len(segments) != count and not (self._has_tail and len(segments) > count):
            return None
        captured: list[str] = []
        for pattern, segment in zip(own, segments, strict=False):
            if not pattern.is_capture:
                if pattern.literal != segment:
                    return None
                continue
            text = pattern.match(segment)
            if text is None:
                return None
            captured.append(text)
        if self._has_tail:
            captured.append("/".join(segments[count:]))
        return tuple(captured)

    def serves(self, method: str) -> bool:
        return (
            self.method == method
            or self.method == ANY_METHOD
            or (method == "HEAD" and self.method == "GET")
        )


class _Match(NamedTuple):
    handler: Handler
    params: tuple[str, ...]
    target: Target


class Router:
    """The routes of a listener.

    on_error: answers for a handler that raised and for a request without a route; it gets the
        exception, which is a ServingError where the fault is the client's. It must answer the
        request.
    """

    def __init__(
        self,
        routes: Iterable[Route] = (),
        on_error: Callable[[HttpRequest, BaseException], None] | None = None,
    ) -> None:
        self.routes: list[Route] = list(routes)
        self.on_error = on_error if on_error is not None else answer_plainly
        self._cache: dict[str, dict[bytes, _Match]] = {}
        self._cached = 0

    def add(self, route: Route) -> None:
        """Add with the lowest priority so far."""
        self.routes.append(route)
        self._cache.clear()
        self._cached = 0

    def route(self, request: HttpRequest) -> Handler:
        """The handler for a request, whose `params` are set.

        Raises RouteNotFound; MethodNotAllowed if the path exists for other methods.
        """
        by_target = self._cache.get(request.method)
        if by_target is not None:
            match = by_target.get(request.target)
            if match is not None:
                request.params = match.params
                request.located = match.target
                return match.handler
        return self._look_up(request)

    def transport_error(self, method: str, target: bytes) -> TransportError | None:
        """The form of errors that the route of a raw target has, if there is one and it has one."""
        try:
            route, _ = self._find_route(method, split_target(target).segments)
        except ServingError:
            return None
        return route.transport_error

    def find(self, method: str, segments: tuple[str, ...]) -> tuple[Handler, tuple[str, ...]]:
        """Handler and captured texts for a decoded path; raises as `route` does."""
        route, params = self._find_route(method, segments)
        return route.handler, params

    def _find_route(self, method: str, segments: tuple[str, ...]) -> tuple[Route, tuple[str, ...]]:
        is_known = False
        for route in self.routes:
            params = route.match(segments)
            if params is None:
                continue
            if route.serves(method):
                return route, params
            is_known = True
        raise MethodNotAllowed if is_known else RouteNotFound

    def _look_up(self, request: HttpRequest) -> Handler:
        target = request.located = split_target(request.target)
        handler, params = self.find(request.method, target.segments)
        request.params = params
        if not target.query and len(request.target) <= CACHED_TARGET_BYTES:
            if self._cached >= CACHED_TARGETS:
                self._cache.clear()
                self._cached = 0
            by_target = self._cache.setdefault(request.method, {})
            by_target[request.target] = _Match(handler, params, target)
            self._cached += 1
        return handler


_PLAIN_STATUS = {
    ErrorKind.INVALID_ARGUMENT: 400,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.METHOD_NOT_ALLOWED: 405,
}


def answer_plainly(request: HttpRequest, error: BaseException) -> None:
    """Answer an error as plain text: for a router to which no dialect gave its own way."""
    if isinstance(error, ServingError) and error.kind in _PLAIN_STATUS:
        request.respond(
            _PLAIN_STATUS[error.kind], f"{error}\n".encode(), content_type=b"text/plain"
        )
        return
    logger.error("%r: the handler failed", request, exc_info=error)
    request.respond(500, b"Internal server error.\n", content_type=b"text/plain")
