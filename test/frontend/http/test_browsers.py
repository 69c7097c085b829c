"""Pages of other sites, and preflights (the hole of CVE-2026-27482, and DNS rebinding)."""

from __future__ import annotations

import pytest

from ts_frontend.dialects.errors import answer_error
from ts_frontend.http.browsers import CorsRouter, guard_from_pages, is_trusted_origin
from ts_frontend.http.router import Route


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "is_loopback_only", "is_trusted"),
    [
        ("http://localhost:3000", "127.0.0.1:8081", None, True, True),
        ("http://127.0.0.1:8081", "127.0.0.1:8081", None, True, True),
        ("http://[::1]:3000", "127.0.0.1:8081", None, True, True),
        ("https://evil.example", "127.0.0.1:8081", None, True, False),
        ("null", "127.0.0.1:8081", None, True, False),
        ("", "127.0.0.1:8081", None, True, False),
        ("http://[", "127.0.0.1:8081", None, True, False),
        ("http://localhost.evil.example", "127.0.0.1:8081", None, True, False),
        # A name of the attacker's that leads to 127.0.0.1: same origin, and yet foreign.
        ("http://rebound.example:8081", "rebound.example:8081", None, True, False),
        ("http://models.example:8081", "models.example:8081", None, False, True),
        ("http://models.example:81", "models.example:8081", None, False, False),
        ("https://app.example", "127.0.0.1:8081", "https://app.example", True, True),
        ("https://app.example", "h", "https://a.example, https://app.example", True, True),
        ("https://app.example.evil", "127.0.0.1:8081", "https://app.example", True, False),
        ("https://evil.example", "127.0.0.1:8081", "*", True, True),
    ],
)
def test_origins(
    origin: str, host: str, allowed: str | None, is_loopback_only: bool, is_trusted: bool
) -> None:
    found = is_trusted_origin(origin, host, allowed, is_loopback_only=is_loopback_only)
    assert found is is_trusted


def answers(request):
    request.respond(200, b"done")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
async def test_pages_of_other_sites_are_refused_with_every_method(
    serve, connect, method: str
) -> None:
    routes = guard_from_pages([Route("*", "/models", answers)], None, is_loopback_only=True)
    listener = await serve(*routes, on_error=answer_error)
    for origin, status in ((b"https://evil.example", 403), (b"http://localhost:3000", 200)):
        client = await connect(listener)
        await client.send(
            b"%b /models HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: %b\r\n\r\n"
            % (method.encode(), origin)
        )
        assert (await client.answer(to_head=method == "HEAD")).status == status
    client = await connect(listener)
    await client.send(b"%b /models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % method.encode())
    assert (await client.answer(to_head=method == "HEAD")).status == 200


async def test_a_preflight_needs_no_route_and_no_key(serve, connect) -> None:
    def locked(request):
        raise AssertionError("reached")

    cors = [(b"access-control-allow-origin", b"https://a")]
    listener = await serve(Route("POST", "/models", locked), router=CorsRouter, headers=cors)
    client = await connect(listener)
    answer = await client.ask(
        b"OPTIONS /models HTTP/1.1\r\nHost: h\r\nOrigin: https://a\r\n"
        b"Access-Control-Request-Method: POST\r\n\r\n"
    )
    assert answer.status == 200
    assert answer[b"access-control-allow-origin"] == b"https://a"
    # Without that header it is an OPTIONS like any other.
    assert (await client.ask(b"OPTIONS /models HTTP/1.1\r\nHost: h\r\n\r\n")).status == 405
