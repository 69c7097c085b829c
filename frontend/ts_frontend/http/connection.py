"""One client connection: bytes to requests, in order, one answered at a time.

llhttp (through httptools) parses; this class decides how much it may be fed. It has no pause, so
whatever is fed is parsed, and what a client may make us keep is bounded by feeding little:

* a small read that starts at a message boundary goes in whole (the hot path);
* otherwise a head is fed up to its end, a body of known length up to its end, a chunked body in
  slices;
* while a request is being answered nothing is fed: bytes wait in `_unread`, and beyond a bound the
  socket is not read;
* the rest of a large body of known length is not fed at all, but read from the socket straight into
  its place (`_PlaceReader`);
* nor is a small request whose head is, byte for byte, one that the parser has read on this
  connection twice already: the same bytes mean the same (`_learn_head`).

Requests that were parsed wait in `_parsed`; `_pump` starts them one after the other. Answers go out
through `HttpRequest`, which calls `answered` when it is done. A fault of the client (`_fault`) is
answered when everything before it has been, and ends the connection.

Time limits are checked by the listener's one sweep (`check_time`), so that no request needs a
timer.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

import httptools

from ts_frontend.core.errors import RequestCancelled
from ts_frontend.http.request import Body, HttpRequest, reset_on_close

if TYPE_CHECKING:
    from ts_frontend.http.listener import Listener

logger = logging.getLogger(__name__)

# What the parser is in the middle of.
_IDLE: Final = 0  # between messages
_HEAD: Final = 1
_BODY: Final = 2
_DEAF: Final = 3  # whatever else arrives is dropped

# Bytes of following requests that are read ahead while one is being answered. Reading goes on up to
# here because a client that leaves is only noticed while its socket is read.
READ_AHEAD_BYTES = 64 * 1024
CHUNKED_SLICE_BYTES = 16 * 1024

# The first read after a large body: the head of the next request, and little of its body.
PLACE_READER_BYTES = 8 * 1024

# Pipelined requests that are started before other connections have their turn.
REQUESTS_PER_TURN = 64

# How long input is still taken and dropped after an answer that came before the end of the request.
# A close with unread input would reset the connection and could take the answer with it.
LINGER_S = 2.0

# A client that shut down its sending side looks like one that left. If the answer takes longer than
# this, an interim answer is sent, which a client that left refuses (see `_probe`).
FIRST_PROBE_S = 0.1
LAST_PROBE_S = 15.0

_METHODS = {
    name.encode(): name for name in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")
}

# What these ask for is done while the head is parsed.
_HEADERS_WITH_EFFECT = frozenset((b"expect", b"transfer-encoding", b"upgrade"))

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BARE_503 = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_BARE_417 = b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n"
_BARE_417_CLOSE = (
    b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)

_LINE_ENDS = re.compile(rb"[\r\n]*")

INVALID_MESSAGE = "Invalid HTTP message."


class BodyPlaces(Protocol):
    """Where large bodies are put.

    threshold: bodies from this size on, in bytes.
    """

    threshold: int

    def place(self, size: int) -> memoryview | None:
        """Room for `size` bytes, whose reuse nobody has to think about; None if there is none."""


class BareAnswer(NamedTuple):
    """An answer without standard headers that waits for its turn; neither counted nor logged."""

    payload: bytes
    close: bool


class Fault(NamedTuple):
    """What the client did wrong; answered as a transport error, after which the connection ends."""

    status: int
    message: str


class _Refused(Exception):
    """Stops the parser from within a callback; what is wrong is already noted on the connection."""


class HttpConnection(asyncio.Protocol):
    """The protocol of one accepted connection.

    `_phase` says what the parser is in, `current` which request is being answered.
    """

    __slots__ = (
        "_body",
        "_body_left",
        "_chunks",
        "_drain_waiters",
        "_fault",
        "_has_eof",
        "_head_bytes",
        "_headers",
        "_is_chunked",
        "_is_closing",
        "_is_held",
        "_is_last",
        "_is_length_checked",
        "_is_pumping",
        "_is_reading_paused",
        "_is_swallowing",
        "_is_write_paused",
        "_keep_alive",
        "_known_head",
        "_known_request",
        "_known_size",
        "_lingers",
        "_max_body_bytes",
        "_method",
        "_parsed",
        "_parser",
        "_phase",
        "_place",
        "_place_from_bytes",
        "_place_reader",
        "_probe_timer",
        "_received",
        "_router",
        "_since_s",
        "_small_read",
        "_stalled_bytes",
        "_stalled_since_s",
        "_target",
        "_trailers_from",
        "_unframed",
        "_unread",
        "_version",
        "_wants_continue",
        "current",
        "is_tls",
        "listener",
        "remote",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, listener: Listener, *, is_tls: bool = False) -> None:
        # Configuration
        self.listener = listener
        self.is_tls = is_tls
        self._router = listener.router
        self._small_read = listener.small_read_bytes
        self._max_body_bytes = listener.limits.max_body_bytes
        bodies = None if is_tls else listener.bodies
        self._place_from_bytes = sys.maxsize if bodies is None else bodies.threshold

        # Per connection
        self.remote = "unix"
        self.current: HttpRequest | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._parsed: deque[HttpRequest | BareAnswer] = deque()
        self._unread: bytes | memoryview = b""
        self._phase: int = _IDLE
        self._since_s = listener.now_s  # when the phase began, or when the last answer was sent
        self._fault: Fault | None = None
        self._is_last = False  # no request after the one that is parsed
        self._lingers = False  # the client may still be sending when the answer is out
        self._has_eof = False
        self._is_closing = False
        self._is_pumping = False
        self._is_reading_paused = False
        self._is_write_paused = False
        self._is_held = False  # writing is paused, or other connections have their turn
        self._drain_waiters: list[asyncio.Future[None]] = []
        self._probe_timer: asyncio.TimerHandle | None = None
        self._stalled_bytes = 0
        self._stalled_since_s = 0.0
        self._place_reader: _PlaceReader | None = None
        self._known_head = b""  # of the last small request, with the size of all of it
        self._known_size = 0
        self._known_request: HttpRequest | None = None  # None: its head came only once

        # Per message
        self._method = b""
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._version = "1.1"
        self._keep_alive = True
        self._head_bytes = 0  # fed of a head that is not complete
        self._is_length_checked = False  # the head may exceed its limits: measure it
        self._body: Body = b""
        self._place: memoryview | None = None  # of the body that is being read, for all of it
        self._body_left = 0  # of a known length; 1 before the first chunk of a chunked body
        self._received = 0  # body bytes
        self._chunks = 0
        self._unframed = 0  # bytes of a chunked body fed since it last made progress
        self._is_chunked = False
        self._trailers_from = 0
        self._is_swallowing = False  # the request was answered at its head, its body is dropped
        self._wants_continue = False

    def __repr__(self) -> str:
        phase = ("idle", "head", "body", "deaf")[self._phase]
        waiting = len(self._parsed)
        return f"<HttpConnection {self.remote} {phase} current={self.current!r} waiting={waiting}>"

    # What the transport reports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.remote = f"/{peer[0]}:{peer[1]}"
        if not self.listener.admit(self):
            self._is_closing = True
            self._phase = _DEAF
            self.transport.write(_BARE_503)
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if (
            self.current is None
            and self._phase == _IDLE
            and len(data) <= self._small_read
            and not self._is_held
        ):
            if len(data) == self._known_size and data.startswith(self._known_head):
                known = self._known_request
                if known is not None:
                    body = data[len(self._known_head) :]
                    self._start(known.again(body, time.monotonic()))
                    return
            consumed = self._feed(data)
            if consumed < len(data):
                self._unread = data[consumed:]
            elif len(self._parsed) == 1 and self._phase == _IDLE:
                self._learn_head(data, self._parsed[0])
            if self._parsed or self._unread or self._fault is not None:
                self._pump()
            elif self._phase == _BODY:
                self._find_place(b"")
        else:
            self._receive(data)

    def eof_received(self) -> bool:
        """A client may shut down its sending side and still wait for its answer.

        True keeps the transport open for that.
        """
        self._has_eof = True
        if self._is_closing or self.is_tls:
            return False
        if self.current is None:
            self._pump()
        if self.current is None and not self._parsed and not self._unread:
            return False
        if self._probe_timer is None:
            self._schedule_probe(FIRST_PROBE_S)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.listener.dismiss(self)
        self._lose()
        for waiter in self._drain_waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._parser = cast("httptools.HttpRequestParser", None)  # it refers back to this object
        self._place_reader = None  # so does this
        self._known_request = None  # and this

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._is_held = True
        self._stalled_since_s = self.listener.now_s
        self._stalled_bytes = self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._is_held = False
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self.current is None:
            self._pump()

    # Feeding the parser

    def _receive(self, data: bytes) -> None:
        """The general way of a read: bound what is fed, keep the rest."""
        if self._phase == _DEAF:
            return
        if self.current is not None or self._unread or self._parsed or self._is_held:
            self._unread = bytes(self._unread) + data if self._unread else data
        else:
            self._consume(data)
            if self._parsed or self._unread or self._fault is not None:
                self._pump()
        if (
            len(self._unread) > READ_AHEAD_BYTES
            and not self._is_reading_paused
            and not self._is_closing
        ):
            self._is_reading_paused = True
            self.transport.pause_reading()

    def _consume(self, data: bytes | memoryview) -> None:
        """Feed piece by piece until a request is complete; what follows it goes to `_unread`."""
        limits = self.listener.limits
        # Bounds what the parser may collect; the limits themselves are checked when the head is
        # complete. Twice the headers, because separators are not counted.
        max_head_bytes = limits.max_request_line_bytes + 2 * limits.max_header_bytes
        view = memoryview(data)
        size = len(view)
        offset = 0
        while offset < size and self._phase != _DEAF:
            if self._parsed:
                self._unread = view[offset:]
                return
            if self._phase == _BODY:
                if self._is_chunked:
                    piece = view[offset : offset + CHUNKED_SLICE_BYTES]
                    headers, progress = self._headers, self._received + self._chunks
                    offset += self._feed(piece)
                    if self._headers is headers and self._phase == _BODY:
                        self._bound_unframed(len(piece), progress)
                elif taken := self._find_place(view[offset:]):
                    offset += taken
                else:
                    offset += self._feed(view[offset : offset + self._body_left])
            else:
                piece = view[offset : offset + max_head_bytes]
                # Empty lines before a request are allowed: they are not the end of its head.
                blank = cast("re.Match[bytes]", _LINE_ENDS.match(piece)).end()
                end = bytes(piece).find(b"\r\n\r\n", blank if self._phase == _IDLE else 0)
                if end >= 0:
                    piece = piece[: end + 4]
                # A message that begins in this piece starts again at 0.
                self._head_bytes += len(piece)
                self._is_length_checked = True
                offset += self._feed(piece)
                self._is_length_checked = False
                if self._phase == _HEAD and self._head_bytes >= max_head_bytes:
                    self._note_fault(400, INVALID_MESSAGE)

    def _find_place(self, data: bytes | memoryview) -> int:
        """Let the rest of a body be read into its place, if it is large and has just begun.

        data: what came after that which was fed. Returns how much of it was taken.
        """
        left, fed = self._body_left, self._received
        if (
            left < self._place_from_bytes
            or fed > self._small_read
            or self._is_chunked
            or self._is_swallowing
            or self.listener.bodies is None
        ):
            return 0
        place = self.listener.bodies.place(fed + left)
        if place is None:
            return 0
        taken = min(len(data), left)
        place[:fed] = self._body
        place[fed : fed + taken] = data[:taken]
        self._body = b""
        self._place = place
        if taken < left and self._place_reader is None:
            self._place_reader = _PlaceReader(self)
            self.transport.set_protocol(self._place_reader)
        self._fill_place(taken)
        return taken

    def _fill_place(self, count: int) -> None:
        self._received += count
        self._body_left -= count
        if not self._body_left:
            self._body, self._place = cast("memoryview", self._place), None
            self._parser = httptools.HttpRequestParser(self)  # the old one waits for the body
            self.on_message_complete()

    @property
    def has_place(self) -> bool:
        """Whether a body is being read into its place."""
        return self._place is not None

    def place_filled(self, count: int) -> None:
        """`count` bytes of the body were read into its place."""
        self._fill_place(count)
        if not self.has_place:
            self._pump()

    def leave_place_reader(self) -> None:
        """Back to ordinary reads."""
        self._place_reader = None
        if not self.transport.is_closing():
            self.transport.set_protocol(self)

    def _learn_head(self, data: bytes, request: HttpRequest | BareAnswer) -> None:
        """`data` was exactly one message. Should its head come again, the parser need not be asked.

        Only where nobody could take another part of it for the head, and where the head asks for
        nothing but an answer.
        """
        head = data[: data.find(b"\r\n\r\n") + 4]
        if head != self._known_head:
            self._known_head = head
            self._known_size = len(data)
            self._known_request = None
            return
        if (
            isinstance(request, HttpRequest)
            and request.version == "1.1"
            and len(head) + len(request.body) == len(data) == self._known_size
            and head.count(b"\n") == head.count(b"\r\n") == len(request.headers) + 2
            and not any(name.lower() in _HEADERS_WITH_EFFECT for name, _ in request.headers)
        ):
            request.is_head_known = True
            self._known_request = request

    def _bound_unframed(self, fed: int, progress: int) -> None:
        """Refuse a chunked body that goes on without data.

        Its chunk extensions or trailers have no end, and the parser collects a trailer before it
        reports it.
        """
        if self._received + self._chunks != progress:
            self._unframed = 0
            return
        self._unframed += fed
        if self._unframed > self.listener.limits.max_header_bytes:
            self._note_fault(400, INVALID_MESSAGE)

    def _feed(self, data: bytes | memoryview) -> int:
        """Give bytes to the parser; how many of them it took (fewer only after an Upgrade)."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            return cast("int", upgrade.args[0])
        except httptools.HttpParserError as error:
            if self._fault is None and not self._is_last:
                cause = error.__context__
                if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(
                    cause, _Refused
                ):
                    logger.error("A parser callback failed", exc_info=cause)
                self._note_fault(400, INVALID_MESSAGE)
        return len(data)

    def _ignore_upgrade(self) -> None:
        """Go on in HTTP/1.1 after a request that offered another protocol.

        The parser takes such a request to end with its head. Its body, if it has one, must still be
        read as a body: taken for the next request it would be a way to smuggle one in.
        """
        if self._phase != _BODY:
            self._parser = httptools.HttpRequestParser(self)
            return
        framing = b"Transfer-Encoding: chunked"
        if not self._is_chunked:
            framing = b"Content-Length: %d" % self._body_left
        events = _EventsAfterHead(self)
        self._parser = httptools.HttpRequestParser(events)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        events.is_replaying = False

    def _note_fault(self, status: int, message: str) -> None:
        if self._fault is None:
            self._fault = Fault(status, message)
        self._lingers = True
        self._phase = _DEAF
        self._place = None

    # What the parser reports

    def on_message_begin(self) -> None:
        self._phase = _HEAD
        self._target = b""
        self._headers = []
        self._head_bytes = 0
        self._since_s = self.listener.now_s

    def on_url(self, url: bytes) -> None:
        if self._target:
            url = self._target + url
        self._target = url
        if len(url) > self._small_read and len(url) > self.listener.limits.max_request_line_bytes:
            self._note_fault(400, INVALID_MESSAGE)
            raise _Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value.rstrip()))

    def on_headers_complete(self) -> None:
        self._keep_alive = keep_alive = self._parser.should_keep_alive()
        length = 0
        chunked = False
        expectation = b""
        is_plain_11 = keep_alive
        for name, value in self._headers:
            size = len(name)
            if size == 14:
                if name.lower() == b"content-length":
                    length = int(value)
            elif size == 10:
                if name.lower() == b"connection":
                    is_plain_11 = False
            elif size == 17:
                if name.lower() == b"transfer-encoding":
                    chunked = True
                    if value.lower() != b"chunked":
                        self._note_fault(400, INVALID_MESSAGE)
                        raise _Refused
            elif size == 6 and name.lower() == b"expect":
                expectation = value.lower()
        self._phase = _BODY
        self._method = self._parser.get_method()
        self._body_left = length
        self._received = 0
        self._chunks = 0
        self._body = b""
        self._is_chunked = False
        if is_plain_11:
            self._version = "1.1"
        else:
            self._version = version = self._parser.get_http_version()
            if version != "1.1" and (version != "1.0" or chunked):
                self._note_fault(400, INVALID_MESSAGE)
                raise _Refused
        if self._is_length_checked:
            self._check_head_length()
        if chunked:
            self._is_chunked = True
            self._body_left = 1
            self._unframed = 0
            self._trailers_from = len(self._headers)
        refuse = self.listener.refuse_body
        if length > self._small_read and refuse is not None and (refusal := refuse(length)):
            answers = refusal + b"\r\n", refusal + b"connection: close\r\n\r\n"
            self._swallow(*answers, was_expected=bool(expectation))
        elif expectation and self._version == "1.1":
            self._meet_expectation(expectation, length)
        elif length > self._max_body_bytes:
            self._swallow(*self._too_large())

    def _check_head_length(self) -> None:
        limits = self.listener.limits
        line_bytes = len(self._method) + len(self._target) + len("  HTTP/1.1")
        header_bytes = sum(len(name) + len(value) + 2 for name, value in self._headers)
        if line_bytes > limits.max_request_line_bytes or header_bytes > limits.max_header_bytes:
            self._note_fault(400, INVALID_MESSAGE)
            raise _Refused

    def _meet_expectation(self, expectation: bytes, length: int) -> None:
        if expectation != b"100-continue":
            has_body = length > 0 or self._is_chunked
            self._swallow(_BARE_417, _BARE_417_CLOSE, was_expected=has_body)
        elif length > self._max_body_bytes:
            self._swallow(*self._too_large(), was_expected=True)
        elif self.current is None and not self._parsed:
            self.transport.write(_CONTINUE)
        else:
            self._wants_continue = True

    def _too_large(self) -> tuple[bytes, bytes]:
        return self.listener.too_large(self._method, self._target)

    def _swallow(self, answer: bytes, closing_answer: bytes, *, was_expected: bool = False) -> None:
        """Answer at the head of a request; its body is read and dropped.

        was_expected: the client has asked whether to send the body. Some send it all the same and
        some do not, so nobody can tell what the next bytes are: they must not be taken for a
        request, which they would be where TorchServe keeps the connection.
        """
        self._is_swallowing = True
        close = was_expected or not self._keep_alive
        self._is_last = close
        self._parsed.append(BareAnswer(closing_answer if close else answer, close))

    def on_chunk_header(self) -> None:
        self._body_left = 0
        self._chunks += 1
        if self._chunks > self.listener.limits.max_body_chunks:
            self._refuse_chunked_body()

    def on_body(self, body: bytes) -> None:
        size = len(body)
        self._received += size
        if self._is_chunked:
            if self._received > self._max_body_bytes:
                self._refuse_chunked_body()
        else:
            self._body_left -= size
        if self._is_swallowing:
            return
        so_far = self._body
        if not so_far:
            self._body = body
        elif isinstance(so_far, bytearray):
            so_far += body
        else:
            joined = bytearray(so_far)
            joined += body
            self._body = joined

    def _refuse_chunked_body(self) -> None:
        self._body = b""
        self._is_last = True
        self._lingers = True
        if not self._is_swallowing:
            self._parsed.append(BareAnswer(self._too_large()[1], True))
        self._phase = _DEAF
        raise _Refused

    def on_message_complete(self) -> None:
        if self._body_left:
            return  # an Upgrade with a body, see _ignore_upgrade
        self._phase = _IDLE
        self._wants_continue = False
        if self._is_swallowing:
            self._is_swallowing = False
            if self._is_last:
                self._phase = _DEAF
            return
        if not self._keep_alive:
            self._is_last = True
            self._phase = _DEAF
        headers = self._headers
        if self._is_chunked:
            del headers[self._trailers_from :]
        self._parsed.append(
            HttpRequest(
                _METHODS.get(self._method) or self._method.decode(),
                self._target,
                headers,
                self._body,
                version=self._version,
                keep_alive=self._keep_alive,
                arrived_s=time.monotonic(),
                remote=self.remote,
                connection=self,
            )
        )
        self._body = b""

    # Serving, one request at a time

    def _pump(self) -> None:
        """Do whatever can be done next, until a request is being answered or input is missing."""
        if self._is_pumping:
            return
        self._is_pumping = True
        turns = REQUESTS_PER_TURN
        try:
            while self.current is None and not self._is_closing and not self._is_write_paused:
                if self._parsed:
                    if not turns:
                        self._is_held = True
                        asyncio.get_running_loop().call_soon(self._take_turn)
                        break
                    turns -= 1
                    self._start(self._parsed.popleft())
                elif self._fault is not None:
                    self._answer_fault(self._fault)
                elif self._unread and self._phase != _DEAF:
                    data, self._unread = self._unread, b""
                    self._consume(data)
                elif self._wants_continue:
                    self._wants_continue = False
                    self.transport.write(_CONTINUE)
                elif self._has_eof:
                    self._close()
                else:
                    break
        finally:
            self._is_pumping = False
        if (
            self._is_reading_paused
            and len(self._unread) <= READ_AHEAD_BYTES
            and not self._is_closing
        ):
            self._is_reading_paused = False
            self.transport.resume_reading()

    def _take_turn(self) -> None:
        self._is_held = self._is_write_paused
        self._pump()

    def _start(self, item: HttpRequest | BareAnswer) -> None:
        if isinstance(item, BareAnswer):
            self.transport.write(item.payload)
            if item.close:
                self._close()
            return
        self.current = item
        try:
            result = self._router.route(item)(item)
        except Exception as error:
            self._fail(item, error)
            return
        if result is not None:
            item.run(self._finish(item, result), self.listener.tasks)

    async def _finish(self, request: HttpRequest, answering: Awaitable[None]) -> None:
        """Run a coroutine handler; whatever it does, the client gets an answer."""
        try:
            await answering
        except asyncio.CancelledError:
            if not request.is_complete and not request.is_disconnected:
                self._fail(request, RequestCancelled())
            raise
        except Exception as error:
            self._fail(request, error)
        else:
            if not request.is_complete:
                self._fail(request, RuntimeError("The handler returned without an answer."))

    def _fail(self, request: HttpRequest, error: BaseException) -> None:
        """Answer for a handler that could not."""
        if request.is_disconnected or request.is_complete:
            if not isinstance(error, RequestCancelled):
                logger.error("%r: failed after its answer", request, exc_info=error)
            return
        if request.is_answered:
            logger.error("%r: the stream broke off", request, exc_info=error)
            request.reset()
            return
        try:
            self._router.on_error(request, error)
        except Exception:
            logger.exception("%r: the error could not be translated", request)
        if not request.is_answered:
            message = "Internal server error."
            request.respond(
                500, self.listener.transport_error(500, message), content_type=b"application/json"
            )

    def _answer_fault(self, fault: Fault) -> None:
        """Answer what could not be parsed, with the headers of an ordinary answer."""
        request = HttpRequest(
            "-",
            self._target or b"/",
            [],
            keep_alive=False,
            arrived_s=time.monotonic(),
            remote=self.remote,
            connection=self,
        )
        self.current = request
        request.respond(
            fault.status,
            self.listener.transport_error(fault.status, fault.message),
            content_type=b"application/json",
        )

    def answered(self, request: HttpRequest, status: int, keep_alive: bool) -> None:
        """Called by the request when its answer is complete."""
        self.current = None
        # It leads back to the request. What forms a ring waits for the collector, with its body.
        request.on_disconnect = None
        listener = self.listener
        if listener.is_observed:
            listener.observe(request, status)
        if not keep_alive:
            self._close()
        else:
            self._since_s = listener.now_s
            if not self._is_pumping and (
                self._parsed
                or self._unread
                or self._has_eof
                or self._fault is not None
                or self._wants_continue
            ):
                self._pump()

    def broken_off(self, request: HttpRequest, status: int) -> None:
        """Called by the request when it gave up a stream: both outcomes are counted."""
        self.current = None
        request.on_disconnect = None
        if self.listener.is_observed:
            self.listener.observe(request, status)
            self.listener.observe_status(500, request)
        if request.version == "1.0":
            reset_on_close(self.transport)
            self.transport.abort()
        self._close()

    # Ending

    def _close(self) -> None:
        """Close after what was written is sent; take the rest of an unfinished request first."""
        if self._is_closing:
            return
        self._is_closing = True
        lingers = self._lingers or self._phase == _BODY or bool(self._unread)
        self._phase = _DEAF
        self._place = None
        self._parsed.clear()
        self._unread = b""
        self._since_s = self._stalled_since_s = self.listener.now_s
        self._stalled_bytes = self.transport.get_write_buffer_size()
        if lingers and not self._has_eof and not self.transport.is_closing():
            if self._is_reading_paused:
                self._is_reading_paused = False
                self.transport.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
        else:
            self.transport.close()

    def cut(self) -> None:
        """End the connection at once, as if the client had left."""
        self._lose()
        self.transport.abort()

    def shut(self) -> None:
        """The listener stops: close if idle, else after the running answer (which says so)."""
        if self.current is None and self._phase == _IDLE and not self._parsed and not self._unread:
            self._close()

    def _lose(self) -> None:
        """The client is gone: tell whoever works on its request."""
        self._is_closing = True
        self._phase = _DEAF
        self._place = None
        self._parsed.clear()
        self._unread = b""
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        request, self.current = self.current, None
        if request is not None:
            if request.is_answered and self.listener.is_observed:
                self.listener.observe(request, request.stream_status)
            request.lose_client()

    async def wait_writable(self) -> None:
        while self._is_write_paused and not self._is_closing:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drain_waiters.append(waiter)
            await waiter

    # Time

    def check_time(self, now_s: float) -> None:
        """Enforce the time limits; called about once a second."""
        limits = self.listener.limits
        if self._is_write_paused or self._is_closing:
            self._check_writing(now_s)
            return
        if self.current is not None or self._parsed or self._unread:
            return  # it is our turn, not the client's
        waited_s = now_s - self._since_s
        if self._phase == _IDLE:
            if waited_s > limits.keep_alive_timeout_s:
                self._close()
        elif self._phase == _HEAD:
            if waited_s > limits.header_timeout_s:
                self._note_fault(408, "The request head did not arrive in time.")
                self._pump()
        elif self._phase == _BODY:
            allowed_s = limits.body_timeout_s + self._received / limits.min_body_bytes_per_s
            if waited_s > allowed_s:
                if self._is_swallowing:
                    self._close()
                else:
                    self._note_fault(408, "The request body did not arrive in time.")
                    self._pump()

    def _check_writing(self, now_s: float) -> None:
        left = self.transport.get_write_buffer_size()
        if left != self._stalled_bytes:
            self._stalled_bytes = left
            self._stalled_since_s = now_s
        elif left:
            if now_s - self._stalled_since_s > self.listener.limits.write_timeout_s:
                self.cut()
        elif self._is_closing and now_s - self._since_s > LINGER_S:
            self.transport.abort()

    # A client that shut down its sending side

    def _schedule_probe(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._probe_timer = loop.call_later(delay_s, self._probe, delay_s)

    def _probe(self, delay_s: float) -> None:
        """Find out whether a half-closed client still listens.

        Only data makes the system of a client that left object. An interim answer is data that a
        waiting client ignores (RFC 9110, 15.2); 100 is the one that the simplest clients know.
        """
        self._probe_timer = None
        if self._is_closing or self.current is None:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.cut()
            return
        if not self.current.is_answered and self.current.version == "1.1":
            self.transport.write(_CONTINUE)
        self._schedule_probe(min(delay_s * 2, LAST_PROBE_S))


class _PlaceReader(asyncio.BufferedProtocol):
    """Takes over the transport of a connection while it reads a large body.

    Between the body and whatever follows it takes small reads for the connection, since the next
    request will often be like the last; the first one that is not ends its service.
    """

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self._between = memoryview(bytearray(PLACE_READER_BYTES))

    def get_buffer(self, _sizehint: int) -> memoryview:
        place = self._connection._place
        return self._between if place is None else place[self._connection._received :]

    def buffer_updated(self, count: int) -> None:
        connection = self._connection
        if connection.has_place:
            connection.place_filled(count)
            return
        connection.data_received(bytes(self._between[:count]))
        if not connection.has_place:
            connection.leave_place_reader()

    # Of the connection as ever

    def eof_received(self) -> bool:
        return self._connection.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._connection.connection_lost(error)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


class _EventsAfterHead:
    """Events of a parser that starts in the middle of a message: its made-up head is kept back."""

    def __init__(self, connection: HttpConnection) -> None:
        self.is_replaying = True
        self.on_body = connection.on_body
        self.on_chunk_header = connection.on_chunk_header
        self.on_message_complete = connection.on_message_complete
        self._connection = connection

    def on_message_begin(self) -> None:
        if not self.is_replaying:
            self._connection.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self.is_replaying:
            self._connection.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_replaying:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self.is_replaying:
            self._connection.on_headers_complete()
