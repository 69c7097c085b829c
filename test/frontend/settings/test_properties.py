import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.settings.properties import (
    PropertiesError,
    Property,
    decode_text,
    format_properties,
    parse_properties,
)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("a=b", "a", "b"),
        ("a:b", "a", "b"),
        ("a b", "a", "b"),
        ("a\tb", "a", "b"),
        ("  a  =  b c ", "a", "b c "),
        ("a = = b", "a", "= b"),
        ("a b=c", "a", "b=c"),
        ("a", "a", ""),
        ("a=", "a", ""),
        ("=b", "", "b"),
        ("a\\=b=c", "a=b", "c"),
        ("a\\ b : c", "a b", "c"),
        ("a=x\\:y", "a", "x:y"),
        ("a=\\t\\n\\r\\f\\q", "a", "\t\n\r\fq"),
        ("a=caf\\u00e9", "a", "café"),
        ("a=\\ud83d\\ude00", "a", "\U0001f600"),
        ("a=b\\\\", "a", "b\\"),
        ("a=http://h:80/x?y=z", "a", "http://h:80/x?y=z"),
        ("a=b # no comment", "a", "b # no comment"),
        ("a=one,\\\n   two,\\\r\n\tthree", "a", "one,two,three"),
        ("a=one\\\n# two", "a", "one# two"),
        ("a=one\\", "a", "one"),
        ("\ufeffa=b".encode().decode("utf-8-sig"), "a", "b"),
        ("a=x\x0cy\u2028z", "a", "x\x0cy\u2028z"),
    ],
)
def test_one_entry(text, key, value):
    assert [(entry.key, entry.value) for entry in parse_properties(text)] == [(key, value)]


def test_lines_are_counted_over_comments_blank_lines_and_continuations():
    text = "# top\n\n  ! more \\\na=1\r\nb=2,\\\n  3\n\nc=4\rd=5"
    assert parse_properties(text) == [
        Property("a", "1", 4),
        Property("b", "2,3", 5),
        Property("c", "4", 8),
        Property("d", "5", 9),
    ]


def test_a_broken_unicode_escape_names_its_line():
    with pytest.raises(PropertiesError, match=r"line 2: .*four hexadecimal digits"):
        parse_properties("a=1\nb=\\u12x4")


def test_latin_1_is_read_where_utf_8_does_not_fit():
    assert decode_text("k=é".encode("latin-1")) == "k=é"
    assert decode_text("k=é".encode()) == "k=é"


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_what_is_written_reads_back(values):
    # Lone surrogates are no text; Java could not write them either.
    values = {
        key.encode("utf-8", "replace").decode(): value.encode("utf-8", "replace").decode()
        for key, value in values.items()
    }
    text = format_properties(values, "a comment")
    assert text.isascii()
    assert {entry.key: entry.value for entry in parse_properties(text)} == values


@given(st.text())
def test_any_text_gives_entries_or_a_properties_error(text):
    with contextlib.suppress(PropertiesError):
        parse_properties(text)
