"""A listening address and the connections it accepted.

`Listener` owns the sockets, the connections and the tasks of coroutine handlers. One timer per
listener (`_sweep`) keeps its clock and asks every connection to check its time limits.

A TLS listener accepts by itself instead of through the loop's server: it looks at the first byte of
a connection without taking it, so that a client that speaks plain HTTP gets an answer it can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl as tls
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ts_frontend.core.errors import ServingError
from ts_frontend.http.access_log import AccessLog
from ts_frontend.http.connection import BodyPlaces, HttpConnection
from ts_frontend.http.request import (
    HeaderBlocks,
    Headers,
    HttpRequest,
    new_request_id,
    status_line,
)
from ts_frontend.http.router import Router
from ts_frontend.settings.addresses import Address

logger = logging.getLogger(__name__)

BACKLOG = 4096
SWEEP_INTERVAL_S = 1.0
LAST_CALL_S = 0.5  # for idle connections when the server stops

_TLS_HANDSHAKE_RECORD = 0x16  # RFC 8446, 5.1

_HTTPS_ONLY = b'{\n  "status": "This TorchServe instance only accepts HTTPS requests"\n}\n'


class BindFailed(ServingError):
    """The address cannot be listened on: taken, not ours, or not permitted."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one client may take."""

    max_body_bytes: int = 6553500
    max_body_chunks: int = 65536  # HTTP chunks of one request body
    max_request_line_bytes: int = 4096
    max_header_bytes: int = 8192
    max_response_buffer_bytes: int = 64 * 1024 * 1024  # unsent bytes of one stream
    max_connections: int = 10000
    header_timeout_s: float = 60.0
    body_timeout_s: float = 60.0  # extended by the time that a slow link needs
    min_body_bytes_per_s: int = 500  # ... at this rate
    keep_alive_timeout_s: float = 120.0
    write_timeout_s: float = 60.0  # without any progress


def plain_transport_error(status: int, message: str) -> bytes:
    """The error body of TorchServe's clients, for a listener to which no dialect gave its own."""
    kind = {400: "BadRequestException", 408: "RequestTimeoutException"}.get(
        status, "InternalServerException"
    )
    return (
        f'{{\n  "code": {status},\n  "type": "{kind}",\n  "message": "{message}"\n}}\n'
    ).encode()


class Listener:
    """Accepts connections on one address and serves them with one router.

    ssl: required for an https address, refused for others.
    socket_mode: permissions of a Unix socket.
    headers: further header lines of every answer, such as the configured CORS ones; an answer that
        sets one of them itself keeps its own.
    too_large: what the body of a 413 says; empty: it has none, as with TorchServe.
    on_response: called with the status and the seconds of every answer except 413 and 417.
    transport_error: gives the body for a fault below the routes from (status, message).
    bodies: where large request bodies are put, in place of memory of this process alone.
    """

    def __init__(
        self,
        address: Address,
        router: Router,
        limits: HttpLimits | None = None,
        *,
        ssl: tls.SSLContext | None = None,
        socket_mode: int = 0o600,
        headers: Headers = (),
        too_large: str = "",
        access_log: AccessLog | None = None,
        on_response: Callable[[int, float], None] | None = None,
        transport_error: Callable[[int, str], bytes] = plain_transport_error,
        bodies: BodyPlaces | None = None,
    ) -> None:
        if (ssl is not None) != (address.scheme == "https"):
            raise ValueError(f"TLS settings do not fit the address {address}")
        # Configuration
        self.address = address
        self.router = router
        self.limits = limits if limits is not None else HttpLimits()
        self.header_blocks = HeaderBlocks.build(headers)
        self.transport_error = transport_error
        self._too_large_text = too_large
        self.bodies = bodies
        self.is_observed = access_log is not None or on_response is not None
        self.small_read_bytes = min(
            self.limits.max_request_line_bytes, self.limits.max_header_bytes
        )
        # Asked before a body that did not come with its head is read: None, or the head of the bare
        # answer that refuses it, without the empty line at its end.
        self.refuse_body: Callable[[int], bytes | None] | None = None
        self._ssl = ssl
        self._socket_mode = socket_mode
        self._access_log = access_log
        self._on_response = on_response
        self._sweep_interval_s = min(
            SWEEP_INTERVAL_S,
            self.limits.header_timeout_s / 4,
            self.limits.body_timeout_s / 4,
            self.limits.keep_alive_timeout_s / 4,
            self.limits.write_timeout_s / 4,
        )

        # While it runs
        self.now_s = time.monotonic()  # as of the last sweep; close enough for time limits
        self.is_stopping = False  # every answer is its connection's last
        self._turns_away = False  # connections that the loop had accepted come too late now
        self.connections: set[HttpConnection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None
        self._acceptor: asyncio.Task[None] | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self._socket_file = 0  # inode of a Unix socket
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._lacks_descriptors = False
        self._emptied: asyncio.Event = asyncio.Event()

    def __repr__(self) -> str:
        state = "stopping" if self.is_stopping else "listening" if self._socket else "closed"
        return f"<Listener {self.address} {state} connections={len(self.connections)}>"

    async def start(self) -> None:
        """Listen; the address then holds the real port.

        Raises BindFailed.
        """
        loop = asyncio.get_running_loop()
        try:
            sock = await self._bind()
        except OSError as error:
            raise BindFailed(f"Failed to bind to address: {self.address}") from error
        self._socket = sock
        if self.address.scheme != "unix":
            self.address = self.address._replace(port=sock.getsockname()[1])
        if self.address.scheme == "unix":
            self._socket_file = os.stat(self.address.path).st_ino
            self._server = await loop.create_unix_server(
                lambda: HttpConnection(self), sock=sock, backlog=BACKLOG
            )
        elif self._ssl is None:
            self._server = await loop.create_server(
                lambda: HttpConnection(self), sock=sock, backlog=BACKLOG
            )
        else:
            sock.listen(BACKLOG)
            self._acceptor = loop.create_task(self._accept_tls(sock, self._ssl))
        self._sweep()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Stop accepting, let running answers end for `grace_s` seconds, then cut what is left."""
        if self._socket is None:
            return
        if self._server is not None:
            await self._accept_waiting(self._socket)
        self.is_stopping = True
        await self._stop_accepting()
        # A client may be sending its next request just now: closing under it would lose that.
        # Answers tell their clients to close from now on, so most connections end by themselves.
        last_call_s = min(grace_s, LAST_CALL_S)
        if self.connections and last_call_s > 0:
            await self._wait_emptied(last_call_s)
        self._turns_away = True
        for connection in list(self.connections):
            connection.shut()
        if self.connections and grace_s > 0:
            await self._wait_emptied(grace_s - last_call_s)
        for connection in list(self.connections):
            connection.cut()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        while self.connections:  # a cut connection reports its end in the next round of the loop
            self._emptied.clear()
            await self._emptied.wait()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        self._socket = None

    async def _wait_emptied(self, timeout_s: float) -> None:
        """Until the last connection has ended, or the time is over."""
        self._emptied.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()

    # Sockets

    async def _bind(self) -> socket.socket:
        if self.address.scheme == "unix":
            return _bind_unix(self.address.path, self._socket_mode)
        found = await asyncio.get_running_loop().getaddrinfo(
            self.address.host, self.address.port, type=socket.SOCK_STREAM
        )
        # A name such as "localhost" has several; the IPv4 one is what clients of TorchServe use.
        family, kind, protocol, _, sockaddr = min(found, key=lambda item: item[0] != socket.AF_INET)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(sockaddr)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        return sock

    async def _accept_waiting(self, listening: socket.socket) -> None:
        """Take in who has connected already; closing the listening socket would reset them."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:  # nobody waits, or there is no descriptor
                return
            sock.setblocking(False)
            await loop.connect_accepted_socket(lambda: HttpConnection(self), sock)

    async def _stop_accepting(self) -> None:
        if self._acceptor is not None:
            self._acceptor.cancel()
            await asyncio.gather(self._acceptor, return_exceptions=True)
            self._acceptor = None
            if self._socket is not None:
                self._socket.close()
        if self._server is not None:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # The loop closes it a turn later; who connected meanwhile would be reset.
                    self._socket.shutdown(socket.SHUT_RDWR)
            self._server.close()
            self._server = None
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        if self.address.scheme == "unix":
            with contextlib.suppress(FileNotFoundError):
                # A successor may have bound the path already.
                if os.stat(self.address.path).st_ino == self._socket_file:
                    os.unlink(self.address.path)

    # Connections

    def admit(self, connection: HttpConnection) -> bool:
        """Take a new connection in; False if there are too many."""
        has_room = len(self.connections) < self.limits.max_connections
        self.connections.add(connection)
        return has_room and not self._turns_away

    def dismiss(self, connection: HttpConnection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._emptied.set()

    def observe(self, request: HttpRequest, status: int) -> None:
        """Count and log a finished answer."""
        seconds = time.monotonic() - request.arrived_s
        if self._on_response is not None:
            self._on_response(status, seconds)
        if self._access_log is not None:
            self._access_log.note(
                request.remote, request.method, request.target, request.version, status, seconds
            )

    def too_large(self, method: bytes, target: bytes) -> tuple[bytes, bytes]:
        """The answer to a body over the limit, for a connection that goes on and for one that ends:
        of the form that its route has.
        """
        body = b""
        if self._too_large_text:
            form = self.router.transport_error(method.decode("latin-1"), target)
            body = (form or self.transport_error)(413, self._too_large_text)
        return _too_large(body, b""), _too_large(body, b"connection: close")

    def observe_status(self, status: int, request: HttpRequest) -> None:
        """Count a second outcome of an answer that is already logged."""
        if self._on_response is not None:
            self._on_response(status, time.monotonic() - request.arrived_s)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep_timer = loop.call_later(self._sweep_interval_s, self._sweep)
        self.now_s = now_s = time.monotonic()
        for connection in list(self.connections):
            connection.check_time(now_s)
        self._check_descriptors()

    def _check_descriptors(self) -> None:
        """Say so when no descriptor is left: the loop closes new connections without a word."""
        if self._socket is None or self.is_stopping:
            return
        try:
            os.close(os.dup(self._socket.fileno()))
        except OSError as error:
            if not self._lacks_descriptors:
                logger.error(
                    "%s: new clients are turned away: %s. Allow more (ulimit -n) or fewer "
                    "connections (max_connections).",
                    self.address,
                    error.strerror,
                )
            self._lacks_descriptors = True
            return
        if self._lacks_descriptors:
            logger.warning("%s: there is room for new clients again.", self.address)
        self._lacks_descriptors = False

    # TLS

    async def _accept_tls(self, listening: socket.socket, context: tls.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError as error:
                # Out of descriptors or memory: a pause lets others finish. Or the client is gone.
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    await asyncio.sleep(SWEEP_INTERVAL_S)
                continue
            if len(self._handshakes) + len(self.connections) >= self.limits.max_connections:
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(self._shake_hands(sock, context))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, sock: socket.socket, context: tls.SSLContext) -> None:
        """Make a connection of an accepted socket, or refuse one that does not speak TLS."""
        loop = asyncio.get_running_loop()
        timeout_s = self.limits.header_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                first = await _peek(sock)
            if first and first[0] != _TLS_HANDSHAKE_RECORD:
                await loop.connect_accepted_socket(lambda: _HttpsOnly(self), sock)
                return
            if not first:
                sock.close()
                return
            await loop.connect_accepted_socket(
                lambda: HttpConnection(self, is_tls=True),
                sock,
                ssl=context,
                ssl_handshake_timeout=timeout_s,
            )
        except (OSError, tls.SSLError, TimeoutError):
            # A client that left or failed the handshake: its business. The transport closed the
            # socket if it got that far.
            sock.close()
        except BaseException:
            sock.close()
            raise


async def _peek(sock: socket.socket) -> bytes:
    """The first byte that arrives, which stays in the socket; empty if the client left."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not arrived.done():
            arrived.set_result(None)

    loop.add_reader(sock.fileno(), note)
    try:
        await arrived
    finally:
        loop.remove_reader(sock.fileno())
    return sock.recv(1, socket.MSG_PEEK)


def _bind_unix(path: str, mode: int) -> socket.socket:
    """A socket bound to a path.

    A socket that a former process left there is removed, any other file is not.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(Path(path).stat().st_mode):
            os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        os.chmod(path, mode)  # nobody can connect before it listens
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _too_large(body: bytes, header: bytes) -> bytes:
    headers = [header] if header else []
    if body:
        headers.append(b"content-type: application/json")
    lines = [b"HTTP/1.1 413 Request Entity Too Large", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


class _HttpsOnly(asyncio.Protocol):
    """Tells a client that speaks plain HTTP to a TLS listener what is wrong."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        # Close only after the client had time to read: unread input would turn the close into a
        # reset.
        timeout_s = self._listener.limits.header_timeout_s
        self._timer = asyncio.get_running_loop().call_later(timeout_s, transport.abort)
        request_id = new_request_id().encode()
        transport.write(
            b"%bx-request-id: %b%b%d\r\ncontent-type: application/json\r\n\r\n%b"
            % (
                status_line(403),
                request_id,
                self._listener.header_blocks.close,
                len(_HTTPS_ONLY),
                _HTTPS_ONLY,
            )
        )
        transport.write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
