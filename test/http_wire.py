"""An HTTP connection without a socket: bytes in, bytes out, nothing waits."""

from __future__ import annotations

import re
from typing import Any

from ts_frontend.http.connection import HttpConnection
from ts_frontend.http.listener import HttpLimits, Listener
from ts_frontend.http.request import HttpRequest
from ts_frontend.http.router import Route, Router
from ts_frontend.settings.addresses import parse_address

LOOPBACK = parse_address("http://127.0.0.1:0")


class FakeTransport:
    """What a connection sees of a transport: takes every byte at once, unless told to hold them."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.writes = 0  # calls
        self.is_reading = True
        self.is_closed = False
        self.has_sent_eof = False
        self.held_bytes = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 50000) if name == "peername" else default

    def write(self, data: bytes) -> None:
        assert not self.has_sent_eof
        self.writes += 1
        self.written += data

    def writelines(self, pieces: list[bytes]) -> None:
        self.write(b"".join(pieces))

    def get_write_buffer_size(self) -> int:
        return self.held_bytes

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_sent_eof = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True

    @property
    def takes_input(self) -> bool:
        return not self.is_closed and not self.has_sent_eof


class Wire:
    """A connection without a socket, whose requests are noted and answered or kept waiting."""

    def __init__(self, answers_at_once: bool = True, **limits: Any) -> None:
        self.requests: list[HttpRequest] = []
        self.answers_at_once = answers_at_once
        self.listener = Listener(
            LOOPBACK, Router([Route("*", "/{rest*}", self._handle)]), HttpLimits(**limits)
        )
        self.transport = FakeTransport()
        self.connection = HttpConnection(self.listener)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def _handle(self, request: HttpRequest) -> None:
        self.requests.append(request)
        if self.answers_at_once:
            request.respond(200, b"%d" % len(request.body))

    def feed(self, data: bytes) -> None:
        self.connection.data_received(data)

    @property
    def statuses(self) -> list[int]:
        return [
            int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.transport.written)
        ]

    @property
    def masked_output(self) -> bytes:
        """What was sent, without the ids, which are random."""
        return re.sub(rb"x-request-id: [0-9a-f-]{36}", b"x-request-id: ID", self.transport.written)
