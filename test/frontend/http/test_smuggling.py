"""Request smuggling, looked for: the connection beside a reader that knows no leniency.

Whatever bytes come, the connection must see the requests that the strict reader sees and no others.
It may refuse more than that; it may never find a request where the strict reader finds part of a
body, nor go on where the length of a message can be read in two ways.
"""

from __future__ import annotations

from fuzzing import fuzzed
from hypothesis import example, given
from hypothesis import strategies as st
from strict_http import read_strictly

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


@fuzzed
@given(
    repeated=MESSAGES,
    times=st.integers(2, 4),
    others=st.lists(MESSAGES, max_size=2),
    bodies=st.lists(BODIES, max_size=3),
)
@example(b"POST /a HTTP/1.1\r\nContent-Length: 26\r\n\r\n" + SMUGGLED, 3, [], [b"hello"])
@example(b"POST /a HTTP/1.1\r\nHost: h\r\n\r\n", 3, [], [SMUGGLED])
def test_nor_behind_a_head_that_has_come_before(wire, repeated, times, others, bodies):
    """Each read is one message, which is what lets the connection know a head again."""
    head = repeated[: repeated.find(b"\r\n\r\n") + 4]
    reads = [repeated] * times + [head + body for body in bodies] + others + [repeated, SMUGGLED]
    connection = wire()
    for data in reads:
        if connection.transport.takes_input:
            connection.feed(data)
    found = [(request.target, bytes(request.body)) for request in connection.requests]
    expected = read_strictly(b"".join(reads))
    assert found == expected[: len(found)]
    if len(found) < len(expected):
        assert connection.statuses[-1] == 400
