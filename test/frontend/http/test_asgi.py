"""ASGI applications behind the bridge."""

from __future__ import annotations

import asyncio

import pytest

from ts_frontend.http.asgi import asgi_handler
from ts_frontend.http.router import Route


@pytest.fixture
def mount(serve):
    async def start(app, **options):
        return await serve(
            Route("*", "/app/{rest*}", asgi_handler(app, root_path="/app")), **options
        )

    return start


async def test_whole_answer(mount, connect):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        message = await receive()
        assert message == {"type": "http.request", "body": b"data", "more_body": False}
        await send(
            {
                "type": "http.response.start",
                "status": 201,
                "headers": [
                    (b"content-type", b"text/plain"),
                    (b"content-length", b"4"),
                    (b"x-a", b"1"),
                ],
            }
        )
        await send({"type": "http.response.body", "body": b"done"})
        assert await receive() == {"type": "http.disconnect"}

    client = await connect(await mount(app))
    for _ in range(2):
        answer = await client.ask(
            b"POST /app/a%20b?q=1 HTTP/1.1\r\nHost: H\r\nContent-Length: 4\r\n\r\ndata"
        )
        assert (answer.status, answer.body, answer[b"x-a"]) == (201, b"done", b"1")
        assert answer[b"content-type"] == b"text/plain"
        assert answer[b"content-length"] == b"4"
    scope = scopes[0]
    assert scope["client"] == client.writer.get_extra_info("sockname")[:2]
    assert (scope["method"], scope["path"], scope["raw_path"]) == (
        "POST",
        "/app/a b",
        b"/app/a%20b",
    )
    assert (scope["query_string"], scope["root_path"]) == (b"q=1", "/app")
    assert scope["headers"] == [(b"host", b"H"), (b"content-length", b"4")]
    assert (scope["type"], scope["http_version"], scope["scheme"]) == ("http", "1.1", "http")


async def test_stream(mount, connect):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"one", b"", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    client = await connect(await mount(app))
    answer = await client.ask(b"GET /app HTTP/1.1\r\n\r\n")
    assert answer.chunks == [b"one", b"two"]


async def test_application_learns_that_the_client_left(mount, connect):
    started, told = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        started.set()
        assert await receive() == {"type": "http.disconnect"}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"nobody"})
        told.set()

    client = await connect(await mount(app))
    await client.send(b"GET /app HTTP/1.1\r\n\r\n")
    await started.wait()
    await client.close()
    await told.wait()


async def silent(scope, receive, send):
    pass


async def raises(scope, receive, send):
    raise ValueError


async def starts_twice(scope, receive, send):
    for _ in range(2):
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def has_no_start(scope, receive, send):
    await send({"type": "http.response.body", "body": b"x"})


async def speaks_nonsense(scope, receive, send):
    await send({"type": "nonsense"})


@pytest.mark.parametrize("app", [silent, raises, starts_twice, has_no_start, speaks_nonsense])
async def test_faulty_application(mount, connect, app):
    def on_error(request, error):
        request.respond(500, type(error).__name__.encode())

    client = await connect(await mount(app, on_error=on_error))
    answer = await client.ask(b"GET /app HTTP/1.1\r\n\r\n")
    assert answer.status == 500
    assert answer.body in (b"RuntimeError", b"ValueError")
