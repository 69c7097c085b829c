"""A bridge that lets an ASGI 3 application answer requests of this server.

    router.add(Route("*", "/app/{rest*}", asgi_handler(app, root_path="/app")))

Only the `http` scope is spoken: no WebSocket, and no lifespan events (start what the application
needs before the listener).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ts_frontend.http.request import Handler, HttpRequest

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


def asgi_handler(app: AsgiApp, *, root_path: str = "") -> Handler:
    """A handler that runs `app` for each request.

    The application learns by the `http.disconnect` message that the client left; it is not
    cancelled.
    """

    async def answer(request: HttpRequest) -> None:
        exchange = _Exchange(request)
        request.survives_disconnect = True
        request.on_disconnect = exchange.client_left.set
        await app(_scope(request, root_path), exchange.receive, exchange.send)

    return answer


def _scope(request: HttpRequest, root_path: str) -> dict[str, Any]:
    host, _, port = request.remote.lstrip("/").rpartition(":")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": request.version,
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.target.partition(b"?")[0],
        "query_string": request.query,
        "root_path": root_path,
        "headers": [(name.lower(), value) for name, value in request.headers],
        "client": (host, int(port)) if port else None,
        "server": None,
        "state": {},
    }


class _Exchange:
    """One request as the application sees it: two callables and what is between them."""

    def __init__(self, request: HttpRequest) -> None:
        self.client_left = asyncio.Event()
        self._request = request
        self._is_body_given = False
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []

    async def receive(self) -> Message:
        if not self._is_body_given:
            self._is_body_given = True
            return {"type": "http.request", "body": bytes(self._request.body), "more_body": False}
        # After the answer there is nothing more to come either.
        if not self._request.is_complete:
            await self.client_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            if self._status:
                raise RuntimeError("http.response.start was sent twice")
            self._status = message["status"]
            self._headers = [(bytes(name), bytes(value)) for name, value in message["headers"]]
        elif kind == "http.response.body":
            if not self._status:
                raise RuntimeError("http.response.body was sent before http.response.start")
            await self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"Unknown ASGI message: {kind}")

    async def _send_body(self, body: bytes, more_body: bool) -> None:
        request = self._request
        if not request.is_answered:
            if not more_body:
                request.respond(self._status, body, headers=self._headers)
                self.client_left.set()
                return
            request.start_stream(self._status, headers=self._headers)
        request.send_chunk(body)
        if more_body:
            await request.wait_writable()
        else:
            request.end_stream()
            self.client_left.set()
