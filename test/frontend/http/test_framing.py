"""Bytes to requests, without sockets: any split gives the same, and no input breaks the server."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INVALID = b'"message": "Invalid HTTP message."'

BODY = bytes(range(256)) * 40  # longer than what is fed in one piece

STREAMS = {
    "get": b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nX-A:   padded  \r\n\r\n",
    "leading line ends": b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "body": b"POST /b HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    "long body": b"POST /b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
    "chunked": (
        b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n2800;name=value\r\n%b\r\n0\r\nTrailer: t\r\n\r\n" % BODY
    ),
    "too large": b"POST /d HTTP/1.1\r\nContent-Length: 30000\r\n\r\n" + bytes(30000),
    "upgrade": (
        b"POST /e HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello"
    ),
    "upgrade, chunked": (
        b"PUT /e HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ),
    "head": b"HEAD / HTTP/1.1\r\n\r\n",
    "long target": b"GET /%b HTTP/1.1\r\nX-B: %b\r\n\r\n" % (b"x" * 4000, b"y" * 4000),
}
CLOSING_STREAMS = {
    "close": b"GET / HTTP/1.1\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\n\r\n",
    "1.0": b"GET / HTTP/1.0\r\n\r\nGET /never HTTP/1.1\r\n\r\n",
    "too large, chunked": (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7000\r\n%b\r\n0\r\n\r\n"
        % bytes(0x7000)
    ),
    "nonsense": b"GET / HTTP/1.1\r\n\r\nNONSENSE / HTTP/1.1\r\n\r\nGET /never HTTP/1.1\r\n\r\n",
}
LIMITS = {"max_body_bytes": 20_000}


def observe(wire):
    requests = [
        (request.method, request.target, request.headers, bytes(request.body), request.version)
        for request in wire.requests
    ]
    return requests, wire.masked_output, wire.transport.takes_input


def feed_split(wire, data, sizes):
    position = 0
    for size in sizes:
        if not wire.transport.takes_input:
            return
        wire.feed(data[position : position + size])
        position += size
    if position < len(data) and wire.transport.takes_input:
        wire.feed(data[position:])


@pytest.mark.parametrize("name", [*STREAMS, *CLOSING_STREAMS])
def test_byte_by_byte(wire, name):
    data = (STREAMS | CLOSING_STREAMS)[name]
    whole, split = wire(**LIMITS), wire(**LIMITS)
    whole.feed(data)
    feed_split(split, data, [1] * len(data))
    assert observe(split) == observe(whole)
    assert whole.statuses
    assert "/never" not in [request.path for request in whole.requests]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.sampled_from(sorted(STREAMS)), min_size=1, max_size=6),
    last=st.sampled_from(["", *CLOSING_STREAMS]),
    sizes=st.lists(st.one_of(st.integers(1, 50), st.integers(1, 30_000)), max_size=30),
    answers_at_once=st.booleans(),
)
def test_any_split_gives_the_same(wire, names, last, sizes, answers_at_once):
    data = b"".join(STREAMS[name] for name in names) + CLOSING_STREAMS.get(last, b"")
    whole, split = wire(**LIMITS), wire(answers_at_once, **LIMITS)
    whole.feed(data)
    feed_split(split, data, sizes)
    while split.connection.current is not None:
        split.connection.current.respond(200, b"%d" % len(split.connection.current.body))
    assert observe(split) == observe(whole)
    assert split.transport.is_reading or not split.transport.takes_input


class Unused:
    """A parser that is not needed any more."""

    def feed_data(self, data: bytes) -> None:
        raise AssertionError(f"asked about {data!r}")


ASKED = b"POST /b?c=d HTTP/1.1\r\nHost: h\r\nContent-Type: Text/Plain\r\nContent-Length: 5\r\n\r\n"


def test_a_head_that_has_come_twice_is_not_parsed_again(wire):
    known, fresh = wire(), wire()
    bodies = [b"one..", b"two..", b"three", b"four."]
    for body in bodies:
        if body == b"three":
            parser, known.connection._parser = known.connection._parser, Unused()
        known.feed(ASKED + body)
    known.connection._parser = parser
    fresh.feed(b"".join(ASKED + body for body in bodies))
    assert observe(known) == observe(fresh)
    assert [bytes(request.body) for request in known.requests] == bodies
    assert len({request.id for request in known.requests}) == len(bodies)
    last = known.requests[-1]
    assert (last.path, last.query, last.content_type) == ("/b", b"c=d", b"text/plain")
    for other in (b"GET / HTTP/1.1\r\n\r\n", ASKED.replace(b"5", b"3") + b"abc", ASKED + b"again"):
        known.feed(other)
    assert [bytes(request.body) for request in known.requests[4:]] == [b"", b"abc", b"again"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        ASKED.replace(b"Host", b"Expect: 100-continue\r\nHost") + b"12345",
        ASKED.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\n\r\n",
        ASKED + b"12345\r\n",
        ASKED + b"12345" + ASKED + b"67890",
    ],
)
def test_what_is_more_than_a_plain_request_is_always_parsed(wire, request_bytes):
    often, whole = wire(**LIMITS), wire(**LIMITS)
    for _ in range(4):
        often.feed(request_bytes)
        assert often.connection._known_request is None
    whole.feed(request_bytes * 4)
    assert observe(often)[0] == observe(whole)[0]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(sorted({**STREAMS, "asked": ASKED + b"12345"})), max_size=12))
def test_reads_of_whole_requests_give_the_same_as_one_read(wire, names):
    requests = [(STREAMS | {"asked": ASKED + b"12345"})[name] for name in names]
    apart, together = wire(**LIMITS), wire(**LIMITS)
    for request in requests:
        apart.feed(request)
    together.feed(b"".join(requests))
    assert observe(apart) == observe(together)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from(sorted({**STREAMS, **CLOSING_STREAMS}.values())),
            st.sampled_from(
                [
                    b"GET ",
                    b"/ HTTP/1.1\r\n",
                    b"\r\n\r\n",
                    b"\r\n",
                    b"Content-Length: 5\r\n",
                    b"Transfer-Encoding: chunked\r\n",
                    b"Expect: 100-continue\r\n",
                    b"Upgrade: h2c\r\nConnection: upgrade\r\n",
                    b"POST / HTTP/1.1\r\n",
                    b"CONNECT a:1 HTTP/1.1\r\n",
                    b"0\r\n\r\n",
                ]
            ),
        ),
        max_size=20,
    ),
    cut=st.integers(0, 400),
    answers_at_once=st.booleans(),
)
def test_no_input_raises(wire, pieces, cut, answers_at_once):
    fuzzed = wire(answers_at_once, **LIMITS)
    data = b"".join(pieces)
    data = data[:cut] + data[cut + 1 :]
    feed_split(fuzzed, data, [max(1, len(data) // 3)])
    if fuzzed.transport.takes_input and fuzzed.connection.current is None:
        fuzzed.connection.eof_received()
    while fuzzed.connection.current is not None:
        fuzzed.connection.current.respond(200)
    for status in fuzzed.statuses:
        assert status in (100, 200, 400, 413, 417)
    if 400 in fuzzed.statuses:
        assert not fuzzed.transport.takes_input
    fuzzed.connection.connection_lost(None)


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.2\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nNo colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : space before the colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: folded\r\n line\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: nul \0\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: bell \x07\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: delete \x7f\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: bare \r return\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS on a plain port
    ],
)
def test_malformed(wire, data):
    broken = wire()
    broken.feed(data)
    assert broken.statuses == [400]
    assert INVALID in broken.transport.written
    assert b"connection: close" in broken.transport.written
    assert not broken.transport.takes_input
    assert broken.requests == []


CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: 5\r\n" + CHUNKED,
        CHUNKED + b"Content-Length: 5\r\n",
        CHUNKED + CHUNKED,
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: 99999999999999999999\r\n",
    ],
)
def test_smuggling_by_length(wire, headers):
    smuggled = wire()
    smuggled.feed(b"POST / HTTP/1.1\r\n%b\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n" % headers)
    assert smuggled.statuses == [400]
    assert smuggled.requests == []


def test_chunked_in_http_1_0_is_refused(wire):
    old = wire()
    old.feed(b"POST / HTTP/1.0\r\n" + CHUNKED + b"\r\n0\r\n\r\n")
    assert old.statuses == [400]


@pytest.mark.parametrize(
    "chunks", [b"0x3\r\nabc\r\n0\r\n\r\n", b"3\nabc\n0\n\n", b"3\r\nabcd\r\n0\r\n\r\n", b"-1\r\n"]
)
def test_malformed_chunks(wire, chunks):
    broken = wire()
    broken.feed(b"POST / HTTP/1.1\r\n" + CHUNKED + b"\r\n" + chunks)
    assert broken.statuses == [400]
    assert broken.requests == []


class TestHeadLimits:
    @staticmethod
    def line(size):
        return b"GET /%b HTTP/1.1\r\n\r\n" % (b"x" * (size - len("GET / HTTP/1.1")))

    @staticmethod
    def headers(size):
        return b"GET / HTTP/1.1\r\nX: %b\r\nY: z\r\n\r\n" % (b"v" * (size - len("X: Y: z")))

    @pytest.mark.parametrize("pieces", [1, 7])
    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (line(4096), 200),
            (line(4097), 400),
            (line(12_000), 400),
            (headers(8192), 200),
            (headers(8193), 400),
            (headers(60_000), 400),
            (b"GET / HTTP/1.1\r\n" + b"A:b\r\n" * 2000 + b"\r\n", 200),
            (b"GET / HTTP/1.1\r\n" + b"A:b\r\n" * 2049 + b"\r\n", 400),
        ],
    )
    def test_exact(self, wire, data, status, pieces):
        limited = wire()
        feed_split(limited, data, [len(data) // pieces] * pieces)
        assert limited.statuses == [status]

    def test_limits_can_be_raised_and_lowered(self, wire):
        generous = wire(max_request_line_bytes=20_000, max_header_bytes=100_000)
        generous.feed(self.line(20_000) + self.headers(100_000))
        assert generous.statuses == [200, 200]
        strict = wire(max_request_line_bytes=100, max_header_bytes=50)
        strict.feed(self.line(100) + self.headers(50))
        strict.feed(self.line(101))
        assert strict.statuses == [200, 200, 400]

    def test_long_head_does_not_count_against_the_next(self, wire):
        connection = wire()
        for _ in range(3):
            data = self.headers(8000) * 5
            feed_split(connection, data, [3000] * 20)
        assert connection.statuses == [200] * 15
