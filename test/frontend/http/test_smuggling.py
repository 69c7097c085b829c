"""Request smuggling, looked for: the connection beside a reader that knows no leniency.

Whatever bytes come, the connection must see the requests that the strict reader sees and no others.
It may refuse more than that; it may never find a request where the strict reader finds part of a
body, nor go on where the length of a message can be read in two ways.
"""

from __future__ import annotations

import re

from fuzzing import fuzzed
from hypothesis import example, given
from hypothesis import strategies as st

_HEAD = re.compile(rb"(?:\r\n)*([A-Z]+) ([!-~]+) HTTP/1\.1\r\n((?:[^\r\n]+\r\n)*)\r\n")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\0\r\n]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[^\r\n]*)?\r\n")
_TRAILERS = re.compile(rb"(?:[^\r\n]+\r\n)*\r\n")


def read_strictly(data: bytes) -> list[tuple[bytes, bytes]]:
    """Target and body of each request (RFC 9112), up to the first that is wrong or not complete."""
    requests = []
    position = 0
    while head := _HEAD.match(data, position):
        fields = [_FIELD.fullmatch(line) for line in head[3].split(b"\r\n")[:-1]]
        if None in fields:
            break
        named = [(field[1].lower(), field[2]) for field in fields if field]
        lengths = [value for name, value in named if name == b"content-length"]
        codings = [value for name, value in named if name == b"transfer-encoding"]
        if len(lengths) + len(codings) > 1:
            break
        position = head.end()
        if codings:
            if codings[0].lower() != b"chunked":
                break
            body, position = read_chunks(data, position)
            if body is None:
                break
        else:
            if lengths and not re.fullmatch(rb"[0-9]{1,9}", lengths[0]):
                break
            size = int(lengths[0]) if lengths else 0
            body = data[position : position + size]
            if len(body) < size:
                break
            position += size
        requests.append((head[2], body))
    return requests


def read_chunks(data: bytes, position: int) -> tuple[bytes | None, int]:
    body = b""
    while chunk := _CHUNK.match(data, position):
        size = int(chunk[1], 16)
        position = chunk.end()
        if not size:
            trailers = _TRAILERS.match(data, position)
            return (None, position) if trailers is None else (body, trailers.end())
        body += data[position : position + size]
        if data[position + size : position + size + 2] != b"\r\n":
            break
        position += size + 2
    return None, position


SMUGGLED = b"GET /smuggled HTTP/1.1\r\n\r\n"
FIELDS = st.sampled_from(
    [
        b"Host: h\r\n",
        b"A: b\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 26\r\n",
        b"content-length:0\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5 \r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length:\t5\r\n",
        b"Content-Length: 5\n",
        b"Content-Length:\r\n 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"transfer-encoding:CHUNKED\r\n",
        b"Transfer-Encoding: chunked \r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"Transfer_Encoding: chunked\r\n",
        b" Transfer-Encoding: chunked\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
        b"X: y\rContent-Length: 5\r\n",
        b"X: y\0\r\n",
    ]
)
BODIES = st.sampled_from(
    [
        b"",
        b"hello",
        SMUGGLED,
        b"0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\nT: t\r\n\r\n",
        b"1a\r\n" + SMUGGLED + b"\r\n0\r\n\r\n",
        b"5;\n" + b"hello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"05\r\nhello\r\n00\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"-1\r\n\r\n",
        b"fffffffffffffffff\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
    ]
)
MESSAGES = st.builds(
    lambda line, fields, end, body: line + b"".join(fields) + end + body,
    st.sampled_from(
        [
            b"POST /a HTTP/1.1\r\n",
            b"GET /b HTTP/1.1\r\n",
            b"POST /c HTTP/1.1\n",
            b"\r\nGET /d HTTP/1.1\r\n",
        ]
    ),
    st.lists(FIELDS, max_size=3),
    st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r\r\n"]),
    BODIES,
)


@fuzzed
@given(
    messages=st.lists(MESSAGES, min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 60), max_size=30),
)
@example(
    [b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], []
)
def test_no_request_is_found_inside_another(wire, messages, sizes):
    data = b"".join(messages) + SMUGGLED
    connection = wire()
    position = 0
    for size in [*sizes, len(data)]:
        if connection.transport.takes_input and position < len(data):
            connection.feed(data[position : position + size])
        position += size
    found = [(request.target, bytes(request.body)) for request in connection.requests]
    expected = read_strictly(data)
    assert found == expected[: len(found)]
    if len(found) < len(expected):
        assert connection.statuses[-1] == 400, "stricter than it need be, and says so"
