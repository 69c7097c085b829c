"""Java properties files: read with line numbers, written with escapes.

The grammar is that of `java.util.Properties`: a key ends at the first unescaped `=`, `:` or blank;
`#` and `!` begin a comment line; an odd number of backslashes at the end continues the line, whose
next part loses its leading blanks; `\\t \\n \\r \\f \\uXXXX` are escapes, and a backslash before
any other character is dropped. The file is UTF-8, or Latin-1 (Java's own choice) where it is not
valid UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_BLANKS = " \t\f"
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_WRITTEN_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\f": "\\f"}


class Property(NamedTuple):
    key: str
    value: str
    line: int  # where the entry begins, counted from 1


class PropertiesError(ValueError):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


def decode_text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def parse_properties(text: str) -> list[Property]:
    """All entries in the order of the file; a key may occur more than once (the last one counts).

    Raises PropertiesError on a malformed `\\uXXXX`.
    """
    entries = []
    for number, line in _logical_lines(text):
        key, value = _split(line)
        entries.append(Property(_unescape(key, number), _unescape(value, number), number))
    return entries


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    parts: list[str] = []
    first = 0
    # str.splitlines also splits at form feeds and Unicode separators, which are ordinary text here.
    for number, natural in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        line = natural.lstrip(_BLANKS)
        if not parts and (not line or line[0] in "#!"):
            continue
        if not parts:
            first = number
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2:
            parts.append(line[:-1])
            continue
        yield first, "".join(parts) + line
        parts = []
    if parts:
        yield first, "".join(parts)


def _split(line: str) -> tuple[str, str]:
    end = 0
    while end < len(line) and line[end] not in "=:" + _BLANKS:
        end += 2 if line[end] == "\\" else 1
    rest = line[end:].lstrip(_BLANKS)
    if rest[:1] in ("=", ":"):
        rest = rest[1:].lstrip(_BLANKS)
    return line[:end], rest


def _unescape(text: str, line: int) -> str:
    if "\\" not in text:
        return text

    def replacement(match: re.Match[str]) -> str:
        escaped = match[1]
        if escaped[:1] == "u":
            if len(escaped) != 5:
                raise PropertiesError(line, "a \\u escape needs four hexadecimal digits")
            return chr(int(escaped[1:], 16))
        return _ESCAPES.get(escaped, escaped)

    plain = re.sub(r"\\(u[0-9a-fA-F]{4}|.|$)", replacement, text, flags=re.DOTALL)
    # Java writes characters beyond U+FFFF as two escapes.
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def format_properties(values: Mapping[str, str], comment: str = "") -> str:
    """A properties file that reads back as `values`; pure ASCII, so that every reader agrees."""
    lines = [f"#{line}" for line in comment.splitlines()]
    lines += [f"{_escape(key, is_key=True)}={_escape(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _escape(text: str, *, is_key: bool = False) -> str:
    out = []
    leading = True
    for char in text:
        if char in _WRITTEN_ESCAPES:
            out.append(_WRITTEN_ESCAPES[char])
        elif (char == " " and (is_key or leading)) or (is_key and char in "=:#!"):
            out.append("\\" + char)
        elif not " " <= char <= "~":
            units = char.encode("utf-16-be", "surrogatepass")
            out += [f"\\u{units[k]:02x}{units[k + 1]:02x}" for k in range(0, len(units), 2)]
        else:
            out.append(char)
        leading = leading and char == " "
    return "".join(out)
