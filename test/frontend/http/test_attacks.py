"""Attacks that other servers fell to; each test is named for one.

Memory is measured with tracemalloc, which sees what Python allocates for us, not the fed bytes.
"""

from __future__ import annotations

import time
import tracemalloc

import pytest

MIB = 1024 * 1024


class Growth:
    """Peak of allocated memory while feeding."""

    def __enter__(self):
        tracemalloc.start()
        self._start, _ = tracemalloc.get_traced_memory()
        return self

    def __exit__(self, *exc_info):
        self.peak_bytes = tracemalloc.get_traced_memory()[1] - self._start
        tracemalloc.stop()


def feed_until_closed(wire, piece, limit_bytes):
    """How much the connection took of endless input."""
    taken = 0
    while wire.transport.takes_input and wire.transport.is_reading and taken < limit_bytes:
        wire.feed(piece)
        taken += len(piece)
    return taken


CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("piece_size", [60, 60_000])
def test_cve_2025_23310_a_million_chunks_of_one_byte(wire, piece_size):
    attacked = wire()
    attacked.feed(CHUNKED)
    with Growth() as growth:
        taken = feed_until_closed(attacked, b"1\r\nx\r\n" * (piece_size // 6), 6_000_000)
    assert attacked.statuses == [413]
    assert taken <= 6 * 65536 + piece_size
    assert growth.peak_bytes < 2 * MIB
    assert attacked.requests == []


def test_many_tiny_chunks_within_the_limit_are_joined(wire):
    attacked = wire()
    attacked.feed(CHUNKED + b"1\r\nx\r\n" * 65535 + b"0\r\n\r\n")
    assert bytes(attacked.requests[0].body) == b"x" * 65535


def test_body_in_single_bytes_costs_its_size(wire):
    attacked = wire()
    attacked.feed(b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n")
    with Growth() as growth:
        for _ in range(300_000):
            attacked.feed(b"x")
    assert len(attacked.requests[0].body) == 300_000
    assert growth.peak_bytes < MIB


def test_cve_2025_33201_a_claimed_size_is_not_allocated(wire):
    attacked = wire(max_body_bytes=10**12)
    with Growth() as growth:
        attacked.feed(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\nabc" % 10**11)
        attacked.feed(b"def")
    assert growth.peak_bytes < MIB


@pytest.mark.parametrize("piece_size", [50, 5000, 250_000])
@pytest.mark.parametrize(
    ("start", "endless"),
    [
        (b"", b"\r\n"),
        (b"GET /", b"x"),
        (b"GET / HTTP/1.1\r\nX-A: ", b"x"),
        (b"GET / HTTP/1.1\r\n", b"x"),
        (b"GET / HTTP/1.1\r\n", b"A: b\r\n"),
        (b"GET / HTTP/1.1\r\nX-A:", b" "),
    ],
)
def test_cve_2025_48956_endless_head(wire, start, endless, piece_size):
    attacked = wire()
    attacked.feed(start)
    piece = endless * (piece_size // len(endless))
    with Growth() as growth:
        taken = feed_until_closed(attacked, piece, 5_000_000)
    if endless != b"\r\n":  # empty lines before a request cost nothing but the time to read them
        assert attacked.statuses == [400]
        assert taken < 30_000 + piece_size
    assert growth.peak_bytes < MIB
    assert attacked.requests == []


@pytest.mark.parametrize("piece_size", [50, 5000, 250_000])
@pytest.mark.parametrize(
    ("start", "endless"),
    [
        (b"5;", b"x"),
        (b"5;name=", b"x"),
        (b'5;name="', b"x"),
        (b"0\r\nTrailer: ", b"x"),
        (b"0\r\n", b"x"),
        (b"0\r\n", b"A: b\r\n"),
        (b"", b"0"),
    ],
)
def test_endless_chunk_extensions_and_trailers(wire, start, endless, piece_size):
    """The parser collects a trailer before it reports it, so it must not be fed one without end."""
    attacked = wire()
    attacked.feed(CHUNKED + start)
    piece = endless * (piece_size // len(endless))
    with Growth() as growth:
        taken = feed_until_closed(attacked, piece, 5_000_000)
    assert attacked.statuses == [400]
    assert taken <= 40_000 + piece_size
    assert growth.peak_bytes < MIB
    assert attacked.requests == []


def test_pipelined_requests_are_not_parsed_ahead(wire):
    """A read full of tiny requests must not become thousands of objects while the first waits."""
    attacked = wire(answers_at_once=False)
    data = b"GET / HTTP/1.1\r\n\r\n" * 14_000
    with Growth() as growth:
        attacked.feed(data)
    assert len(attacked.requests) == 1
    assert growth.peak_bytes < MIB
    assert not attacked.transport.is_reading


def test_swallowed_body_is_not_kept(wire):
    attacked = wire(max_body_bytes=1000)
    attacked.feed(b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n")
    piece = bytes(250_000)
    with Growth() as growth:
        feed_until_closed(attacked, piece, 100_000_000)
    assert growth.peak_bytes < MIB
    attacked.feed(b"GET / HTTP/1.1\r\n\r\n")
    assert attacked.statuses == [413, 200]


def test_head_byte_by_byte_takes_linear_time(wire):
    attacked = wire(max_header_bytes=1_000_000)
    started_s = time.perf_counter()
    for byte in b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 25_000 + b"\r\n":
        attacked.feed(bytes((byte,)))
    assert attacked.statuses == [200]
    assert time.perf_counter() - started_s < 10


def test_response_splitting_by_a_handler(wire):
    """What a model handler sets as headers must not end the header section."""
    attacked = wire(answers_at_once=False)
    attacked.feed(b"GET / HTTP/1.1\r\n\r\n")
    evil = b"a\r\nX-Evil: 1\r\n\r\nHTTP/1.1 200 OK\r\n"
    attacked.requests[0].respond(
        200,
        b"body",
        content_type=evil,
        reason=evil,
        headers=[(b"X-A", evil), (evil, b"v"), (b"X B", b"v"), (b"", b"v"), (b"X-Nul", b"\0")],
    )
    head, _, body = bytes(attacked.transport.written).partition(b"\r\n\r\n")
    assert body == b"body"
    names = [line.split(b":")[0] for line in head.split(b"\r\n")[1:]]
    assert b"X-Evil" not in names
    assert b"X B" not in names
    assert b"\0" not in head
    assert names.count(b"X-A") == 1


def test_response_splitting_by_a_content_type_alone(wire):
    attacked = wire(answers_at_once=False)
    attacked.feed(b"GET / HTTP/1.1\r\n\r\n")
    attacked.requests[0].respond(200, b"", content_type=b"a/b\r\nX-Evil: 1")
    assert b"\r\nX-Evil" not in attacked.transport.written


@pytest.mark.parametrize(
    "name", [b"Content-Length", b"TRANSFER-ENCODING", b"connection", b"X-Request-Id", b"Upgrade"]
)
def test_handler_cannot_change_the_framing(wire, name):
    attacked = wire(answers_at_once=False)
    attacked.feed(b"GET / HTTP/1.1\r\n\r\n")
    attacked.requests[0].respond(200, b"body", headers=[(name, b"framed-by-me")])
    assert b"framed-by-me" not in attacked.transport.written
