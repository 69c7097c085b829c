"""The properties reader beside one that follows java.util.Properties letter by letter."""

from __future__ import annotations

from fuzzing import fuzzed
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.settings.properties import PropertiesError, parse_properties

BLANKS = " \t\f"


def read_letter_by_letter(text: str) -> list[tuple[str, str]] | None:
    """Keys and values, or None where an escape is malformed."""
    entries = []
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines:
        line = lines.pop(0).lstrip(BLANKS)
        if not line or line[0] in "#!":
            continue
        while (len(line) - len(line.rstrip("\\"))) % 2:
            line = line[:-1] + (lines.pop(0).lstrip(BLANKS) if lines else "")
            if not lines:
                break
        key, rest = [], list(line)
        while rest and rest[0] not in BLANKS + "=:":
            key.append(rest.pop(0))
            if key[-1] == "\\" and rest:
                key.append(rest.pop(0))
        while rest and rest[0] in BLANKS:
            rest.pop(0)
        if rest and rest[0] in "=:":
            rest.pop(0)
            while rest and rest[0] in BLANKS:
                rest.pop(0)
        try:
            entries.append((unescape(key), unescape(rest)))
        except ValueError:
            return None
    return entries


def unescape(letters: list[str]) -> str:
    waiting, text = list(letters), ""
    while waiting:
        letter = waiting.pop(0)
        if letter != "\\" or not waiting:
            text += "" if letter == "\\" else letter
            continue
        letter = waiting.pop(0)
        if letter == "u":
            digits = "".join(waiting[:4])
            del waiting[:4]
            if len(digits) < 4 or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
                raise ValueError(digits)
            letter = chr(int(digits, 16))
        else:
            letter = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}.get(letter, letter)
        text += letter
    return text


PIECES = st.sampled_from(
    [*"ab=: \t\f#!\\\n\r", "\r\n", "\\u0041", "\\u00", "\\\n", "\\\\", "\\n", "é"]
)


@fuzzed
@given(st.lists(PIECES, max_size=25).map("".join))
def test_it_reads_what_java_reads(text):
    expected = read_letter_by_letter(text)
    try:
        found = [(entry.key, entry.value) for entry in parse_properties(text)]
    except PropertiesError:
        found = None
    assert found == expected
