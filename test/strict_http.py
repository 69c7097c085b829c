"""A reader of HTTP/1.0 and 1.1 requests that knows no leniency."""

from __future__ import annotations

import re

# Line ends before a request are passed over, whatever they are made of: they belong to no message.
# More than one space between the words of a request line may be (RFC 9112, 3), and ends nothing.
_HEAD = re.compile(rb"[\r\n]*([A-Z-]+) +([!-~]+) +HTTP/1\.[01]\r\n((?:[^\r\n]+\r\n)*)\r\n")
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
