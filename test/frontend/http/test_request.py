"""Reading a request, and the parts of an answer that need no connection."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from ts_frontend.core.errors import InvalidArgument
from ts_frontend.http.request import HttpRequest, new_request_id, split_target, status_line


@pytest.mark.parametrize(
    ("target", "path", "segments", "query"),
    [
        (b"/", "/", (), b""),
        (b"/models", "/models", ("models",), b""),
        (b"/models/", "/models/", ("models",), b""),
        (b"/models//", "/models//", ("models",), b""),
        (b"/models//x", "/models//x", ("models", "", "x"), b""),
        (b"//models", "//models", ("", "models"), b""),
        (b"/a?b=c&d", "/a", ("a",), b"b=c&d"),
        (b"/a?b=c?d", "/a", ("a",), b"b=c?d"),
        (b"/a%2Fb", "/a/b", ("a", "b"), b""),
        (b"/a%3Fb?c", "/a?b", ("a?b",), b"c"),
        (b"/a+b%20c", "/a+b c", ("a+b c",), b""),
        (b"/%252F", "/%2F", ("%2F",), b""),
        (b"/caf%C3%A9", "/café", ("café",), b""),
        (b"/a/%2e%2e/b", "/a/../b", ("a", "..", "b"), b""),
        (b"/%zz", "/%zz", ("%zz",), b""),
        (b"*", "*", ("", "*"), b""),
        (b"ping", "ping", ("", "ping"), b""),
        (b"", "", (), b""),
        (b"http://host:80/a/b?c", "/a/b", ("a", "b"), b"c"),
        (b"http://host", "/", (), b""),
        (b"/http://x", "/http://x", ("http:", "", "x"), b""),
    ],
)
def test_split_target(target, path, segments, query):
    assert split_target(target) == (path, segments, query)


@pytest.mark.parametrize(
    "target", [b"/%ff", b"/%c3", b"/a%00b", b"/a%0d%0ab", b"/%7f", b"/%ed%a0%80"]
)
def test_paths_that_are_refused(target):
    with pytest.raises(InvalidArgument):
        split_target(target)


def test_query_params():
    def params(query):
        return HttpRequest("GET", b"/?" + query, []).query_params()

    assert params(b"") == []
    assert params(b"a=1&b=x+y&a=%C3%A9&empty=&bare&=v") == [
        ("a", "1"),
        ("b", "x y"),
        ("a", "é"),
        ("empty", ""),
        ("bare", ""),
        ("", "v"),
    ]
    with pytest.raises(InvalidArgument):
        params(b"a=%ff")


def test_headers():
    request = HttpRequest(
        "GET", b"/", [(b"X-A", b"1"), (b"x-a", b"2"), (b"Content-Type", b" Text/HTML ; charset=x")]
    )
    assert request.header(b"x-a") == b"1"
    assert request.header(b"x-b") is None
    assert request.content_type == b"text/html"
    assert HttpRequest("GET", b"/", []).content_type == b""


def test_ids_are_version_4_uuids():
    ids = [new_request_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    for text in ids:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)


@pytest.mark.parametrize(
    ("status", "reason", "line"),
    [
        (200, None, b"HTTP/1.1 200 OK\r\n"),
        (200, b"", b"HTTP/1.1 200 \r\n"),
        (200, b"Fine", b"HTTP/1.1 200 Fine\r\n"),
        (413, None, b"HTTP/1.1 413 Request Entity Too Large\r\n"),
        (507, None, b"HTTP/1.1 507 Insufficient Storage\r\n"),
        (599, None, b"HTTP/1.1 599 Unknown Status\r\n"),
        (200, b"a\r\nb", b"HTTP/1.1 200 a  b\r\n"),
    ],
)
def test_status_line(status, reason, line):
    assert status_line(status, reason) == line


class TestAnswer:
    """On a connection without a socket."""

    GET = b"GET / HTTP/1.1\r\n\r\n"

    @pytest.fixture
    def held(self, wire):
        held = wire(answers_at_once=False)
        held.feed(self.GET)
        return held

    @pytest.mark.parametrize("status", [0, 42, 100, 101, 199, 1000, -1])
    def test_status_that_is_no_final_one_becomes_500(self, held, status):
        held.requests[0].respond(status, b"x")
        assert held.statuses == [500]
        assert not held.transport.takes_input

    @pytest.mark.parametrize("status", [0, 100, 1000])
    async def test_same_for_a_stream(self, held, status):
        held.requests[0].start_stream(status)
        held.requests[0].end_stream()
        assert held.statuses == [500]
        assert not held.transport.takes_input

    @pytest.mark.parametrize("status", [204, 304])
    def test_status_without_a_body(self, held, status):
        held.requests[0].respond(status, b"ignored")
        assert b"content-length" not in held.transport.written
        assert held.transport.written.endswith(b"\r\n\r\n")

    def test_own_headers_replace_the_standard_ones(self, held):
        held.requests[0].respond(
            200,
            b"x",
            content_type=b"a/b",
            headers=[(b"pragma", b"mine"), (b"Content-Type", b"c/d")],
        )
        written = bytes(held.transport.written)
        assert b"pragma: mine\r\n" in written
        assert b"Pragma" not in written
        assert b"content-type: a/b\r\n" in written
        assert b"c/d" not in written

    def test_content_type_among_the_headers(self, held):
        held.requests[0].respond(200, b"x", headers=[(b"Content-Type", b"c/d")])
        assert b"Content-Type: c/d\r\n" in held.transport.written

    def test_repeated_header_stays_repeated(self, held):
        held.requests[0].respond(200, headers=[(b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")])
        assert held.transport.written.count(b"Set-Cookie: ") == 2

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    @pytest.mark.parametrize("size", [10, 100_000])
    def test_kinds_of_body(self, held, kind, size):
        held.requests[0].respond(200, kind(bytes(size)))
        head, _, body = bytes(held.transport.written).partition(b"\r\n\r\n")
        assert len(body) == size
        assert b"content-length: %d" % size in head

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    async def test_kinds_of_chunk(self, held, kind):
        held.requests[0].start_stream(200)
        held.requests[0].send_chunk(kind(b"abc"))
        held.requests[0].end_stream()
        assert held.transport.written.endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    async def test_chunks_of_one_turn_are_one_write(self, held):
        request = held.requests[0]
        request.start_stream(200)
        request.send_chunk(b"one")
        request.send_chunk(b"three")
        assert not held.transport.written
        await asyncio.sleep(0)
        assert held.transport.written.endswith(b"3\r\none\r\n5\r\nthree\r\n")
        assert held.transport.writes == 1
        request.end_stream()
        assert held.transport.written.endswith(b"0\r\n\r\n")

    async def test_stages(self, held):
        request = held.requests[0]
        assert (request.is_answered, request.is_complete) == (False, False)
        request.start_stream(201)
        assert (request.is_answered, request.is_complete) == (True, False)
        request.end_stream()
        assert (request.is_answered, request.is_complete) == (True, True)
        assert "answered" in repr(request)

    def test_request_without_a_connection_can_be_answered(self):
        """What a handler's unit test does."""
        request = HttpRequest("GET", b"/", [])
        request.start_stream(200)
        request.send_chunk(b"x")
        request.end_stream()
        assert request.is_complete
