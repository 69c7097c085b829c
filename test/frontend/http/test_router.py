"""Which handler gets a request."""

from __future__ import annotations

import pytest

from ts_frontend.core.errors import InvalidArgument, MethodNotAllowed, RouteNotFound
from ts_frontend.http import router as router_module
from ts_frontend.http.request import HttpRequest
from ts_frontend.http.router import Route, Router, answer_plainly


def handler_named(name):
    def handler(request):
        raise AssertionError("routing does not call handlers")

    handler.name = name
    return handler


def route_of(method, pattern):
    return Route(method, pattern, handler_named(f"{method} {pattern}"))


TABLE = [
    ("*", "/ping"),
    ("OPTIONS", "/"),
    ("GET", "/models"),
    ("POST", "/models"),
    ("GET", "/models/{name}"),
    ("DELETE", "/models/{name}"),
    ("GET", "/models/{name}/{version}"),
    ("PUT", "/models/{name}/{version}/set-default"),
    ("*", "/predictions/{name}"),
    ("*", "/predictions/{name}/{version}/{rest*}"),
    ("POST", "/v1/models/{name}:predict"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/files/pre-{name}-post"),
    ("GET", "/app/{rest*}"),
]


@pytest.fixture
def router():
    return Router([route_of(*line) for line in TABLE])


def find(router, method, target):
    request = HttpRequest(method, target, [])
    handler = router.route(request)
    return handler.name, request.params


@pytest.mark.parametrize(
    ("method", "target", "name", "params"),
    [
        ("GET", b"/ping", "* /ping", ()),
        ("PATCH", b"/ping/", "* /ping", ()),
        ("OPTIONS", b"/", "OPTIONS /", ()),
        ("GET", b"/models?limit=1", "GET /models", ()),
        ("HEAD", b"/models", "GET /models", ()),
        ("POST", b"/models/", "POST /models", ()),
        ("GET", b"/models/a%20b", "GET /models/{name}", ("a b",)),
        ("GET", b"/models/a%2F1", "GET /models/{name}/{version}", ("a", "1")),
        ("GET", b"/mod%65ls/a", "GET /models/{name}", ("a",)),
        ("PUT", b"/models/a/1/set-default", "PUT /models/{name}/{version}/set-default", ("a", "1")),
        ("PUT", b"/predictions/a", "* /predictions/{name}", ("a",)),
        ("GET", b"/predictions/a/1", "* /predictions/{name}/{version}/{rest*}", ("a", "1", "")),
        (
            "GET",
            b"/predictions/a/1/x//y/",
            "* /predictions/{name}/{version}/{rest*}",
            ("a", "1", "x//y"),
        ),
        ("POST", b"/v1/models/a:predict", "POST /v1/models/{name}:predict", ("a",)),
        ("GET", b"/v1/models/a:predict", "GET /v1/models/{name}", ("a:predict",)),
        ("GET", b"/files/pre-x-post", "GET /files/pre-{name}-post", ("x",)),
        ("GET", b"/app", "GET /app/{rest*}", ("",)),
        ("GET", b"/app/a/b", "GET /app/{rest*}", ("a/b",)),
    ],
)
def test_found(router, method, target, name, params):
    for _ in range(2):  # the second time from the cache
        assert find(router, method, target) == (name, params)


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/nope",
        b"/Ping",
        b"/ping/x",
        b"//ping",
        b"/models//1",
        b"/models/a/1/2",
        b"/v1/models/",
        b"/files/pre--post",
        b"/./ping",
        b"/a/../ping",
        b"/%2e/ping",
        b"*",
        b"ping",
    ],
)
def test_not_found(router, target):
    with pytest.raises(RouteNotFound):
        # A method that the table has no path for but with a star is still no route here.
        Router([route for route in router.routes if route.pattern != "/"]).route(
            HttpRequest("GET", target, [])
        )


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", b"/"),
        ("PUT", b"/models"),
        ("DELETE", b"/models"),
        ("POST", b"/models/a"),
        ("PROPFIND", b"/models/a"),
        ("GET", b"/models/a/1/set-default"),
        ("DELETE", b"/models/a/1/set-default"),
        ("POST", b"/v1/models/a"),
    ],
)
def test_wrong_method(router, method, target):
    """CVE-2026-27482: a guard that lists methods forgets one, so what is not listed is refused."""
    with pytest.raises(MethodNotAllowed):
        find(router, method, target)


def test_first_match_wins():
    router = Router([route_of("GET", "/{any*}"), route_of("GET", "/ping")])
    assert find(router, "GET", b"/ping")[0] == "GET /{any*}"


@pytest.mark.parametrize(
    "alias", [b"/admin/", b"/%61dmin", b"/admin%2F", b"/admin?x=1", b"http://other/admin"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_cve_2026_24206_spellings_of_a_path_reach_the_same_handler(alias, method):
    """A check that is part of a handler cannot be passed by another spelling of its path."""
    router = Router([route_of("GET", "/admin"), route_of("GET", "/{name}")])
    assert find(router, method, alias)[0] == "GET /admin"


@pytest.mark.parametrize("alias", [b"//admin", b"/./admin", b"/x/../admin", b"/ADMIN", b"/admin;x"])
def test_cve_2026_24206_other_spellings_are_other_paths(alias):
    router = Router([route_of("GET", "/admin")])
    with pytest.raises(RouteNotFound):
        find(router, "GET", alias)


def test_path_that_cannot_be_decoded(router):
    with pytest.raises(InvalidArgument):
        find(router, "GET", b"/%ff")


@pytest.mark.parametrize(
    "pattern", ["ping", "/{a}{b}", "/{", "/{a*}/b", "/x{a*}", "/{a b}", "/{}", "/a}"]
)
def test_bad_patterns(pattern):
    with pytest.raises(ValueError, match=r"route pattern|last one"):
        Route("GET", pattern, handler_named("x"))


class TestCache:
    def test_misses_and_queries_do_not_fill_it(self, router):
        for number in range(100):
            with pytest.raises(RouteNotFound):
                find(router, "GET", b"/nope/%d" % number)
            find(router, "GET", b"/ping?%d" % number)
            find(router, "GET", b"/models/%b" % (b"x" * (300 + number)))
        assert router._cached == 0

    def test_it_is_bounded(self, router, monkeypatch):
        monkeypatch.setattr(router_module, "CACHED_TARGETS", 10)
        for number in range(1000):
            assert find(router, "GET", b"/models/%d" % number)[1] == (str(number),)
            assert sum(len(part) for part in router._cache.values()) <= 10

    def test_an_added_route_is_seen(self, router):
        assert find(router, "GET", b"/app/x")[0] == "GET /app/{rest*}"
        router.routes.insert(0, route_of("GET", "/app/x"))
        router.add(route_of("GET", "/late"))
        assert find(router, "GET", b"/app/x")[0] == "GET /app/x"
        assert find(router, "GET", b"/late")[0] == "GET /late"

    def test_cached_requests_know_their_path(self, router):
        for _ in range(2):
            request = HttpRequest("GET", b"/models/a%20b/", [])
            router.route(request)
            assert (request.path, request.segments) == ("/models/a b/", ("models", "a b"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RouteNotFound(), 404),
        (MethodNotAllowed(), 405),
        (InvalidArgument("x"), 400),
        (ValueError("x"), 500),
    ],
)
def test_plain_error_answers(wire, error, status):
    held = wire(answers_at_once=False)
    held.feed(b"GET / HTTP/1.1\r\n\r\n")
    answer_plainly(held.requests[0], error)
    assert held.statuses == [status]
