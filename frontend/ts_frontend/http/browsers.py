"""What a server has to do about browsers: CORS, and pages that are not to be trusted.

A browser on the operator's machine reaches listeners on loopback, on behalf of every page that is
open in it. Where no key guards the management API, a request that a page has sent (it has an
`Origin`) is let in only from pages of this machine, of the server's own address, or of
`cors_allowed_origin`. The `Host` of a request proves nothing here: who resolves a name of his to
127.0.0.1 chooses it too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from urllib.parse import urlsplit

from ts_frontend.core.errors import ErrorKind, ServingError
from ts_frontend.http.request import Handler, HttpRequest, split_target
from ts_frontend.http.router import Route, Router
from ts_frontend.settings.addresses import is_loopback


class ForeignPage(ServingError):
    """A page of another site has sent the request, in the name of whoever looks at it."""

    kind = ErrorKind.FORBIDDEN


def is_trusted_origin(
    origin: str, host_header: str, allowed: str | None, *, is_loopback_only: bool
) -> bool:
    """Whether a page of `origin` may ask for more than everybody may.

    host_header: of the request.
    allowed: the setting `cors_allowed_origin`.
    is_loopback_only: the listener is on loopback, where the page's host may just be a name that
        was made to lead there.
    """
    if allowed and (allowed == "*" or origin in allowed.replace(",", " ").split()):
        return True
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        return False
    if is_loopback(host):
        return True
    return not is_loopback_only and urlsplit(origin).netloc.lower() == host_header.lower()


def guard_from_pages(
    routes: Iterable[Route], allowed: str | None, *, is_loopback_only: bool
) -> list[Route]:
    """`routes` that pages of other sites cannot use."""

    def guarded(handler: Handler) -> Handler:
        def check_first(request: HttpRequest) -> Awaitable[None] | None:
            origin = request.header(b"origin")
            if origin is not None and not is_trusted_origin(
                origin.decode("latin-1"),
                (request.header(b"host") or b"").decode("latin-1"),
                allowed,
                is_loopback_only=is_loopback_only,
            ):
                raise ForeignPage(
                    "A page of another site may not use this API. Allow the site with "
                    "cors_allowed_origin, or use token authorization."
                )
            return handler(request)

        return check_first

    return [
        Route(route.method, route.pattern, guarded(route.handler), route.doc, route.transport_error)
        for route in routes
    ]


class CorsRouter(Router):
    """A router that answers preflights itself: they come without a key, whatever they ask for."""

    def route(self, request: HttpRequest) -> Handler:
        if request.method == "OPTIONS" and request.header(b"access-control-request-method"):
            request.located = split_target(request.target)
            return _answer_preflight
        return super().route(request)


def _answer_preflight(request: HttpRequest) -> None:
    request.respond(200)  # the listener adds the configured CORS headers to every answer
