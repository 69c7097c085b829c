"""A real listener on loopback, and a client of exact bytes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from http_wire import Wire

from ts_frontend.http.listener import HttpLimits, Listener
from ts_frontend.http.router import Route, Router
from ts_frontend.settings.addresses import parse_address

LOOPBACK = parse_address("http://127.0.0.1:0")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test that waits runs on both loops: their transports differ."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass
class Answer:
    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    is_whole: bool = True  # False: the connection ended before the body did

    def __getitem__(self, name: bytes) -> bytes:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) == 1, f"{name!r}: {values}"
        return values[0]

    def __contains__(self, name: bytes) -> bool:
        return any(key.lower() == name.lower() for key, _ in self.headers)


class Client:
    """Sends the bytes it is given and reads answers strictly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()

    async def answer(self, *, to_head: bool = False) -> Answer:
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")
        version, status, reason = lines[0].split(b" ", 2)
        assert version == b"HTTP/1.1"
        headers = []
        for line in lines[1:]:
            name, value = line.split(b": ", 1)
            headers.append((name, value))
        answer = Answer(int(status), reason, headers)
        if to_head or answer.status in (100, 204, 304):
            return answer
        if b"transfer-encoding" in answer:
            assert answer[b"transfer-encoding"] == b"chunked"
            await self._read_chunks(answer)
        elif b"content-length" in answer:
            answer.body = await self.reader.readexactly(int(answer[b"content-length"]))
        else:
            answer.body = await self.reader.read()
        return answer

    async def _read_chunks(self, answer: Answer) -> None:
        try:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                answer.chunks.append(await self.reader.readexactly(size))
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
        except (asyncio.IncompleteReadError, ConnectionError):
            answer.is_whole = False
        answer.body = b"".join(answer.chunks)

    async def is_closed(self) -> bool:
        """Wait for the end of the connection; False if something else comes first."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Awaitable[Client]]]:
    clients: list[Client] = []

    async def connect_to(listener: Listener, **options: Any) -> Client:
        if listener.address.scheme == "unix":
            streams = await asyncio.open_unix_connection(listener.address.path)
        else:
            streams = await asyncio.open_connection(
                listener.address.host, listener.address.port, **options
            )
        clients.append(Client(*streams))
        return clients[-1]

    yield connect_to
    for client in clients:
        await client.close()


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Listener]]]:
    """Start a listener with the given routes: a handler alone takes every path."""
    listeners: list[Listener] = []

    async def start(*routes: Route | Callable[..., Any], **options: Any) -> Listener:
        table = [
            route if isinstance(route, Route) else Route("*", "/{rest*}", route) for route in routes
        ]
        limits = HttpLimits(**options.pop("limits", {}))
        kind = options.pop("router", Router)
        router = kind(table, options.pop("on_error", None))
        listener = Listener(options.pop("address", LOOPBACK), router, limits, **options)
        await listener.start()
        listeners.append(listener)
        return listener

    yield start
    for listener in listeners:
        await listener.stop()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait for a condition that has no event of its own."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

    return wait


@pytest.fixture
def wire() -> type[Wire]:
    return Wire


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A fresh self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-out", cert, "-keyout", key],
        check=True,
        capture_output=True,
    )
    return cert, key
