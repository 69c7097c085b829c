"""Form bodies: `multipart/form-data` and `application/x-www-form-urlencoded`.

The body is whole in memory when it gets here, so a part is found by searching the next delimiter,
and a large part is a view of the body. Both parsers take time linear in the body. For multipart
that holds because a delimiter starts with CR LF and contains neither again: a failed comparison
never has to be repeated from the bytes it has passed.

Sources: RFC 7578 (form-data), RFC 2046, 5.1.1 (delimiters and what may stand in a boundary).
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from ts_frontend.core.errors import InvalidArgument

# Parts from here on are views of the body; below, a copy costs less than the view and frees the
# body.
VIEW_FROM_BYTES = 4096

# RFC 2046, 5.1.1: 1 to 70 of these, the last one no space.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")

# One `; name=value` of a header value; the value a token or a quoted string. Each alternative
# starts with a different character and none can match empty, so there is no backtracking to speak
# of.
_PARAMETER = re.compile(
    rb"[ \t]*;[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*=[ \t]*"
    rb'(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))',
    re.DOTALL,
)
_ESCAPED = re.compile(rb'\\(["\\])')


class FormPart(NamedTuple):
    """One named parameter of a form; unpacks into `ts.protocol.messages.Part`."""

    name: bytes
    content_type: bytes  # lower-case media type without parameters; b"" for a plain field
    body: bytes | memoryview


class FormLimits(NamedTuple):
    max_parts: int = 1000
    max_part_header_bytes: int = 8192


def parse_multipart(
    body: bytes | bytearray | memoryview,
    content_type: bytes,
    limits: FormLimits | None = None,
) -> list[FormPart]:
    """The parts of a `multipart/form-data` body, in order; a name may come more than once.

    content_type: the whole header value, with the boundary.
    A part with a file name has a content type (application/octet-stream if it names none); one
    without has the one it names, or none.
    Raises InvalidArgument.
    """
    limits = limits if limits is not None else FormLimits()
    delimiter = b"\r\n--" + find_boundary(content_type)
    view = memoryview(body)
    data = body if not isinstance(body, memoryview) else body.tobytes()
    parts: list[FormPart] = []

    # The first delimiter may stand at the very start, without the line end of a preamble.
    if data.startswith(delimiter[2:]):
        position = len(delimiter) - 2
    else:
        position = data.find(delimiter)
        if position < 0:
            raise InvalidArgument("The multipart body does not contain its boundary.")
        position += len(delimiter)

    while True:
        if data.startswith(b"--", position):
            return parts
        start = _skip_line_end(data, position)
        if len(parts) >= limits.max_parts:
            raise InvalidArgument(f"The multipart body has more than {limits.max_parts} parts.")
        # A part without headers starts with the empty line at once.
        if data.startswith(b"\r\n", start):
            raise InvalidArgument("A part of the multipart body has no name.")
        header_end = data.find(b"\r\n\r\n", start, start + limits.max_part_header_bytes)
        if header_end < 0:
            raise InvalidArgument("The headers of a part do not end, or are too long.")
        name, part_type = _read_part_headers(bytes(view[start:header_end]))
        start = header_end + 4
        # The line end before the delimiter belongs to it, also for a part that is empty.
        end = data.find(delimiter, start - 2)
        if end < 0:
            raise InvalidArgument("The multipart body ends before its last boundary.")
        content = view[start:end] if end > start else view[:0]
        parts.append(
            FormPart(
                name,
                part_type,
                content if len(content) >= VIEW_FROM_BYTES else content.tobytes(),
            )
        )
        position = end + len(delimiter)


def find_boundary(content_type: bytes) -> bytes:
    """The boundary that a `multipart/form-data` header names.

    Raises InvalidArgument.
    """
    boundary = _parameters(content_type).get(b"boundary", b"")
    if _BOUNDARY.fullmatch(boundary) is None:
        raise InvalidArgument("The multipart content type has no valid boundary.")
    return boundary


def parse_form(body: bytes | bytearray | memoryview, max_fields: int = 1000) -> list[FormPart]:
    """The fields of an `application/x-www-form-urlencoded` body, in order, values decoded to bytes.

    Raises InvalidArgument if there are more than `max_fields`.
    """
    data = bytes(body)
    if data.count(b"&") >= max_fields:
        raise InvalidArgument(f"The form has more than {max_fields} fields.")
    fields: list[FormPart] = []
    for pair in data.split(b"&"):
        if pair:
            name, _, value = pair.replace(b"+", b" ").partition(b"=")
            fields.append(FormPart(unquote_to_bytes(name), b"", unquote_to_bytes(value)))
    return fields


def _skip_line_end(data: bytes | bytearray, position: int) -> int:
    """Where the part after a delimiter starts. White space may follow the delimiter (RFC 2046)."""
    if data.startswith(b"\r\n", position):
        return position + 2
    line_end = data.find(b"\r\n", position, position + 72)
    if line_end < 0 or bytes(data[position:line_end]).strip(b" \t"):
        raise InvalidArgument("A boundary of the multipart body is not followed by a line end.")
    return line_end + 2


def _read_part_headers(block: bytes) -> tuple[bytes, bytes]:
    """Name and content type of a part; a plain field has none, whatever it says.

    So TorchServe gives fields to handlers as bytes, also those of the many clients that send a
    type with each.
    """
    name: bytes | None = None
    is_file = False
    content_type: bytes | None = None
    for line in block.split(b"\r\n"):
        key, colon, value = line.partition(b":")
        if not colon:
            raise InvalidArgument("A part of the multipart body has a malformed header.")
        key = key.strip().lower()
        if key == b"content-disposition":
            if value.partition(b";")[0].strip().lower() != b"form-data":
                raise InvalidArgument("A part of the multipart body is not form-data.")
            parameters = _parameters(value)
            name = parameters.get(b"name")
            is_file = b"filename" in parameters or b"filename*" in parameters
        elif key == b"content-type":
            content_type = value.partition(b";")[0].strip().lower()
    if name is None:
        raise InvalidArgument("A part of the multipart body has no name.")
    if not is_file:
        return name, b""
    return name, content_type or b"application/octet-stream"


def _parameters(value: bytes) -> dict[bytes, bytes]:
    """The parameters of a header value; the first of a name counts.

    In a quoted string only a quote and a backslash can be escaped: file names of Windows come with
    bare backslashes.
    """
    found: dict[bytes, bytes] = {}
    position = value.find(b";")
    while 0 <= position < len(value):
        parameter = _PARAMETER.match(value, position)
        if parameter is None:
            if value[position:].strip(b" \t;"):
                raise InvalidArgument("A content header of the request is malformed.")
            break
        quoted = parameter[2]
        text = parameter[3] if quoted is None else _ESCAPED.sub(rb"\1", quoted)
        found.setdefault(parameter[1].lower(), text)
        position = parameter.end()
    return found
