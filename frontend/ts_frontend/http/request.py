"""One HTTP request and the one answer to it.

`HttpRequest` is what a handler gets: the parsed request, and the methods that answer it. It is
built once per request on the hot path, so everything that not every handler needs (path, media
type, query) is worked out when first asked for, and an answer is one joined write.

Entry points: `HttpRequest.respond` for a whole answer, `start_stream` / `send_chunk` / `end_stream`
for one in pieces.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from ts_frontend.core.errors import InvalidArgument

if TYPE_CHECKING:
    from ts_frontend.http.connection import HttpConnection
    from ts_frontend.http.router import Route

Handler = Callable[["HttpRequest"], Awaitable[None] | None]
"""A plain def answers now, or later from a callback; a coroutine is run in a task."""

logger = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]
Body = bytes | bytearray | memoryview

# Below this size one joined write is cheaper than a gathered one; above, the copy costs more.
JOIN_BELOW_BYTES = 16 * 1024

STANDARD_HEADERS = (
    (b"Pragma", b"no-cache"),
    (b"Cache-Control", b"no-cache; no-store, must-revalidate, private"),
    (b"Expires", b"Thu, 01 Jan 1970 00:00:00 UTC"),
)

# Ours alone: a handler that could set these could break the framing of the connection.
_FRAMING_HEADERS = frozenset(
    {
        b"connection",
        b"content-length",
        b"keep-alive",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
    }
)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_CONTROL_TEXT = re.compile("[\x00-\x1f\x7f]")

# Phrases that Python renamed over time, or does not know.
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus} | {
    413: b"Request Entity Too Large",
    414: b"Request-URI Too Long",
    416: b"Requested Range Not Satisfiable",
    422: b"Unprocessable Entity",
}

# Stages of an answer.
_OPEN, _STREAMING, _COMPLETE = 0, 1, 2


class Target(NamedTuple):
    """A request target, decoded."""

    path: str
    segments: tuple[str, ...]
    query: bytes


def split_target(target: bytes) -> Target:
    """Decode a raw request target.

    The path is percent-decoded before it is split, so `%2F` separates; `+` stays. The leading empty
    segment and trailing empty ones are dropped, those in the middle stay. What is no path (`*`)
    gets an empty first segment.
    Raises InvalidArgument for a path that is not UTF-8 or holds control characters.
    """
    raw_path, _, query = target.partition(b"?")
    if not raw_path.startswith(b"/"):
        # The absolute form (`GET http://host/path`), which a proxy's client may send.
        scheme, separator, rest = raw_path.partition(b"://")
        if separator and scheme.isalpha():
            raw_path = b"/" + rest.partition(b"/")[2]
    if b"%" in raw_path:
        raw_path = unquote_to_bytes(raw_path)
    try:
        path = raw_path.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument("The path of the request is not valid UTF-8.") from error
    if _CONTROL_TEXT.search(path):
        raise InvalidArgument("The path of the request holds control characters.")
    segments = path.split("/")
    if segments[0] == "":
        del segments[0]
    else:
        # `OPTIONS *` and the authority of a CONNECT are no paths, and must not look like one.
        segments.insert(0, "")
    while segments and segments[-1] == "":
        segments.pop()
    return Target(path, tuple(segments), query)


def status_line(status: int, reason: bytes | None = None) -> bytes:
    """The first line of an answer with its line end; a `reason` of None means the usual phrase."""
    if reason is None:
        reason = _PHRASES.get(status, b"Unknown Status")
    elif _CONTROL.search(reason):
        reason = _CONTROL.sub(b" ", reason)
    return b"HTTP/1.1 %d %b\r\n" % (status, reason)


def standard_headers(extra: Headers = ()) -> bytes:
    """The header lines that every answer carries, and `extra` ones of the listener (CORS)."""
    return b"".join(b"%b: %b\r\n" % pair for pair in (*STANDARD_HEADERS, *extra))


class HeaderBlocks(NamedTuple):
    """What a listener puts between the request id and the body size, precomputed.

    Each block starts with the line end of the request id.
    """

    keep_alive: bytes  # ends with "content-length: "
    close: bytes  # ends with "content-length: "
    extra: tuple[tuple[bytes, bytes], ...]

    @classmethod
    def build(cls, extra: Headers = ()) -> HeaderBlocks:
        extra = tuple(extra)
        lines = b"\r\n" + standard_headers(extra)
        return cls(
            lines + b"connection: keep-alive\r\ncontent-length: ",
            lines + b"connection: close\r\ncontent-length: ",
            extra,
        )


_LINE_STARTS: dict[tuple[int, bool], bytes] = {}


def _line_start(status: int, has_phrase: bool) -> bytes:
    """Status line and the name of the first header, the same for all answers of a status."""
    start = status_line(status, None if has_phrase else b"") + b"x-request-id: "
    _LINE_STARTS[status, has_phrase] = start
    return start


# A version-4 UUID costs a microsecond from `uuid.uuid4()`. The middle, which carries version and
# variant, is drawn from this table instead; the 80 other bits are fresh. Ids are names, not
# secrets.
_UUID_MIDDLES = tuple(
    f"-{random.getrandbits(16):04x}-4{random.getrandbits(12):03x}"
    f"-{'89ab'[random.getrandbits(2)]}{random.getrandbits(12):03x}-"
    for _ in range(4096)
)


def new_request_id(random_bits: Callable[[int], int] = random.getrandbits) -> str:
    """A fresh random UUID as text."""
    ends = random_bits(80).to_bytes(10, "big").hex()
    return ends[:8] + _UUID_MIDDLES[random_bits(12)] + ends[8:]


class HttpRequest:
    """A request and the way to answer it, once.

    After the client left, answering does nothing. Answering twice raises RuntimeError.
    """

    __slots__ = (
        "_connection",
        "_content_type",
        "_keep_alive",
        "_stage",
        "_status",
        "_task",
        "_unsent",
        "_unsent_bytes",
        "arrived_s",
        "body",
        "headers",
        "id",
        "is_head_known",
        "kept",
        "located",
        "method",
        "on_disconnect",
        "params",
        "remote",
        "state",
        "survives_disconnect",
        "target",
        "version",
    )

    # The request as the client sent it
    method: str
    target: bytes  # raw
    version: str  # "1.1" or "1.0"
    headers: list[tuple[bytes, bytes]]  # the client's spelling and order
    body: Body  # a memoryview if it is large
    remote: str  # "/127.0.0.1:64003", or "unix"

    # What the server knows of it
    id: str
    arrived_s: float  # seconds on the monotonic clock
    params: tuple[str, ...]  # path segments captured by the route
    state: Any  # for middleware
    located: Target | None  # the decoded target, once somebody needed it
    is_head_known: bool  # the next request of the connection may well have the same head
    kept: Any  # for the handler: what it has made of such a head, given to it again

    # Set by the handler
    on_disconnect: (
        Callable[[], None] | None
    )  # called once if the client leaves before the answer is done
    survives_disconnect: bool  # True: a coroutine handler is not cancelled when the client leaves

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: list[tuple[bytes, bytes]],
        body: Body = b"",
        version: str = "1.1",
        keep_alive: bool = True,
        arrived_s: float = 0.0,
        remote: str = "/127.0.0.1:0",
        connection: HttpConnection | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.version = version
        self.remote = remote
        self.id = new_request_id()
        self.arrived_s = arrived_s
        self.params = ()
        self.state = None
        self.is_head_known = False
        self.kept = None
        self.on_disconnect = None
        self.survives_disconnect = False
        self._connection = connection
        self._keep_alive = keep_alive
        self.located = None
        self._content_type: bytes | None = None
        self._task: asyncio.Task[None] | None = None
        self._stage = _OPEN
        self._status = 0

    def __repr__(self) -> str:
        stage = ("open", "streaming", "answered")[self._stage]
        return f"<HttpRequest {self.method} {self.target!r} {self.id} {stage}>"

    def again(self, body: Body, arrived_s: float) -> HttpRequest:
        """A new request with the same head: what was found out about it need not be again."""
        request = HttpRequest(  # by position: names cost a dictionary
            self.method,
            self.target,
            self.headers,
            body,
            self.version,
            self._keep_alive,
            arrived_s,
            self.remote,
            self._connection,
        )
        request.located = self.located
        request._content_type = self._content_type
        request.is_head_known = True
        request.kept = self.kept
        return request

    # Reading

    def _located(self) -> Target:
        if self.located is None:
            self.located = split_target(self.target)
        return self.located

    @property
    def scheme(self) -> str:
        """How the client reached the server: "http" or "https"."""
        return "https" if self._connection is not None and self._connection.is_tls else "http"

    @property
    def routes(self) -> Sequence[Route]:
        """The table of the listener that it came to."""
        return [] if self._connection is None else self._connection.listener.router.routes

    @property
    def path(self) -> str:
        """Percent-decoded, without the query."""
        return self._located().path

    @property
    def segments(self) -> tuple[str, ...]:
        return self._located().segments

    @property
    def query(self) -> bytes:
        """Raw, what follows the first `?`."""
        return self._located().query

    def query_params(self) -> list[tuple[str, str]]:
        """Decoded pairs in order; a name without `=` has an empty value.

        Raises InvalidArgument for text that is not UTF-8.
        """
        query = self.query
        if not query:
            return []
        try:
            return parse_qsl(query.decode(), keep_blank_values=True, errors="strict")
        except UnicodeDecodeError as error:
            raise InvalidArgument("The query of the request is not valid UTF-8.") from error

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        size = len(name)
        for key, value in self.headers:
            if len(key) == size and key.lower() == name:
                return value
        return None

    @property
    def content_type(self) -> bytes:
        """The media type in lower case without its parameters; empty if there is none."""
        if self._content_type is None:
            value = self.header(b"content-type") or b""
            self._content_type = value.partition(b";")[0].strip().lower()
        return self._content_type

    # Answering

    @property
    def is_answered(self) -> bool:
        """True from the moment a status has been chosen; it cannot be changed any more."""
        return self._stage != _OPEN

    @property
    def is_complete(self) -> bool:
        return self._stage == _COMPLETE

    @property
    def stream_status(self) -> int:
        """The status of a stream that has begun."""
        return self._status

    @property
    def is_disconnected(self) -> bool:
        """The client left before the answer was complete."""
        return self._connection is None

    def respond(
        self,
        status: int,
        body: Body = b"",
        *,
        content_type: bytes | None = None,
        headers: Headers = (),
        reason: bytes | None = None,
        keeps_connection: bool = False,
    ) -> None:
        """Send the whole answer.

        body: belongs to the connection from here on; a memoryview must be of bytes.
        headers: replace the standard ones of the same name, except those that frame the message. A
            name that is no token is left out, control characters in a value become spaces: the
            values come from model handlers, and nobody could catch an error here.
        reason: None for the usual phrase, b"" for none.
        keeps_connection: True: not even an error ends it.
        A status that HTTP does not allow for a final answer (below 200, above 999) is sent as 500.
        """
        if self._stage:
            raise RuntimeError(f"{self!r} was answered twice")
        self._stage = _COMPLETE
        connection = self._connection
        if connection is None:
            return
        if not 200 <= status <= 999:
            status, reason = 500, None
        listener = connection.listener
        keep_alive = (
            self._keep_alive and (status < 400 or keeps_connection) and not listener.is_stopping
        )
        size = len(body)
        pieces: list[Body]
        if headers or reason or status == 204 or status == 304:
            framing = b"content-length: %d\r\n" % size
            if status in (204, 304):
                # Neither has a body, and what a 304 would have had is unknown here (RFC 9110, 8.6).
                body = framing = b""
                size = 0
            head = self._full_head(status, content_type, headers, reason, keep_alive, framing)
            pieces = [head, body]
        else:
            start = _LINE_STARTS.get((status, reason is None))
            if start is None:
                start = _line_start(status, reason is None)
            blocks = listener.header_blocks
            if content_type is None:
                pieces = [
                    start,
                    self.id.encode(),
                    blocks.keep_alive if keep_alive else blocks.close,
                    b"%d\r\n\r\n" % size,
                    body,
                ]
            else:
                if b"\r" in content_type or b"\n" in content_type or b"\0" in content_type:
                    content_type = _CONTROL.sub(b" ", content_type)
                pieces = [
                    start,
                    self.id.encode(),
                    blocks.keep_alive if keep_alive else blocks.close,
                    b"%d\r\ncontent-type: %b\r\n\r\n" % (size, content_type),
                    body,
                ]
        if self.method == "HEAD":
            pieces.pop()
            size = 0
        if size < JOIN_BELOW_BYTES:
            connection.transport.write(b"".join(pieces))
        else:
            body = pieces.pop()
            connection.transport.writelines((b"".join(pieces), body))
        connection.answered(self, status, keep_alive)

    def start_stream(
        self,
        status: int,
        *,
        content_type: bytes | None = None,
        headers: Headers = (),
        reason: bytes | None = None,
    ) -> None:
        """Send the head of an answer whose body follows in pieces; arguments as in `respond`.

        An HTTP/1.0 client gets the pieces bare, ended by the close of the connection.
        """
        if self._stage:
            raise RuntimeError(f"{self!r} was answered twice")
        self._stage = _STREAMING
        connection = self._connection
        if connection is None:
            return
        if not 200 <= status <= 999:
            status, reason = 500, None
        if status >= 400 or self.version == "1.0" or connection.listener.is_stopping:
            self._keep_alive = False
        self._status = status
        framing = b"" if self.version == "1.0" else b"transfer-encoding: chunked\r\n"
        self._unsent: list[Body] = []
        self._unsent_bytes = 0
        head = self._full_head(status, content_type, headers, reason, self._keep_alive, framing)
        self._send_soon((head,), len(head))

    def send_chunk(self, data: Body) -> None:
        """Send one piece of a stream; an empty one is left out.

        A client that reads too slowly for the configured buffer is cut off, as if it had left.
        """
        if self._stage != _STREAMING:
            raise RuntimeError(f"{self!r} is no open stream")
        size = len(data)
        if self._connection is None or not size or self.method == "HEAD":
            return
        if self.version == "1.0":
            self._send_soon((data,), size)
        else:
            head = b"%x\r\n" % size
            self._send_soon((head, data, b"\r\n"), len(head) + size + 2)

    def _send_soon(self, pieces: tuple[Body, ...], size: int) -> None:
        """Write with whatever else comes in this turn of the event loop.

        A worker's chunks often arrive together, and a system call for each would cost more than
        all the rest of them.
        """
        unsent = self._unsent
        if not unsent:
            asyncio.get_running_loop().call_soon(self._flush_bounded)
        unsent += pieces
        self._unsent_bytes += size
        if self._unsent_bytes >= JOIN_BELOW_BYTES:
            self._flush_bounded()

    def _flush_bounded(self) -> None:
        """Write what waits, and cut off a client that has left too much unread."""
        self._flush()
        connection = self._connection
        if connection is not None and self._stage == _STREAMING:
            waiting = connection.transport.get_write_buffer_size()
            if waiting > connection.listener.limits.max_response_buffer_bytes:
                connection.cut()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        connection = self._connection
        if connection is None or not unsent:
            return
        if self._unsent_bytes < JOIN_BELOW_BYTES:
            connection.transport.write(b"".join(unsent))
        else:
            connection.transport.writelines(unsent)
        self._unsent_bytes = 0

    def end_stream(self) -> None:
        if self._stage != _STREAMING:
            raise RuntimeError(f"{self!r} is no open stream")
        self._stage = _COMPLETE
        connection = self._connection
        if connection is None:
            return
        if self.version != "1.0" and self.method != "HEAD":
            self._unsent.append(b"0\r\n\r\n")
        self._flush()
        connection.answered(self, self._status, self._keep_alive)

    def reset(self) -> None:
        """Break off a stream so that the client can see that it is incomplete.

        What was sent before is still delivered.
        """
        if self._stage != _STREAMING:
            raise RuntimeError(f"{self!r} is no open stream")
        self._stage = _COMPLETE
        connection = self._connection
        if connection is not None:
            self._flush()
            connection.broken_off(self, self._status)

    # Called by the connection

    def run(self, answering: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        """Run a handler that waits; `tasks` owns the task, which may go on after the answer."""
        task = asyncio.get_running_loop().create_task(answering)
        self._task = task
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def lose_client(self) -> None:
        """The client left before the answer was complete."""
        self._connection = None
        callback, self.on_disconnect = self.on_disconnect, None
        if callback is not None:
            try:
                callback()
            except Exception:
                logger.exception("%r: on_disconnect failed", self)
        if self._task is not None and not self.survives_disconnect:
            self._task.cancel()

    async def wait_writable(self) -> None:
        """Wait until the client has taken most of what was sent, or has left."""
        if self._connection is not None:
            await self._connection.wait_writable()

    def _full_head(
        self,
        status: int,
        content_type: bytes | None,
        headers: Headers,
        reason: bytes | None,
        keep_alive: bool,
        framing: bytes,
    ) -> bytes:
        connection = self._connection
        own: list[tuple[bytes, bytes]] = []
        taken = set(_FRAMING_HEADERS)
        if content_type is not None:
            own.append((b"content-type", _CONTROL.sub(b" ", content_type)))
            taken.add(b"content-type")
        for name, value in headers:
            if name.lower() not in taken and _TOKEN.fullmatch(name):
                own.append((name, _CONTROL.sub(b" ", value)))
        named = {name.lower() for name, _ in own}
        standard: Headers = STANDARD_HEADERS
        if connection is not None:
            standard = (*STANDARD_HEADERS, *connection.listener.header_blocks.extra)
        own += [pair for pair in standard if pair[0].lower() not in named]
        return b"".join(
            [
                status_line(status, reason),
                b"x-request-id: %b\r\n" % self.id.encode(),
                *[b"%b: %b\r\n" % pair for pair in own],
                b"connection: keep-alive\r\n" if keep_alive else b"connection: close\r\n",
                framing,
                b"\r\n",
            ]
        )


def reset_on_close(transport: asyncio.BaseTransport) -> None:
    """Make the coming close of a TCP transport a reset: no client takes it for a whole answer."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
