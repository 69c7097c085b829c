"""Form bodies, well formed and hostile."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_frontend.core.errors import InvalidArgument
from ts_frontend.http.multipart import (
    FormLimits,
    FormPart,
    find_boundary,
    parse_form,
    parse_multipart,
)

TYPE = b"multipart/form-data; boundary=XyZ"


def part(headers, body):
    return b"--XyZ\r\n%b\r\n\r\n%b\r\n" % (headers, body)


def form(*parts):
    return b"".join(parts) + b"--XyZ--\r\n"


def field(name, body=b"value"):
    return part(b'Content-Disposition: form-data; name="%b"' % name, body)


def plain(parts):
    return [(name, content_type, bytes(body)) for name, content_type, body in parts]


def test_fields_and_files_in_order():
    body = form(
        field(b"a", b"1"),
        part(
            b'Content-Disposition: form-data; name="f"; filename="cat.jpg"\r\n'
            b"Content-Type: image/JPEG",
            b"\xff\xd8\r\n--Xy\r\n",
        ),
        field(b"a", b""),
        part(b"content-disposition: FORM-DATA; filename=x; name=g", b"raw"),
        part(
            b'Content-Disposition: form-data; name="j"\r\n'
            b"Content-Type: application/json; charset=utf-8\r\nX-Other: y",
            b"{}",
        ),
    )
    expected = [
        (b"a", b"", b"1"),
        (b"f", b"image/jpeg", b"\xff\xd8\r\n--Xy\r\n"),
        (b"a", b"", b""),
        (b"g", b"application/octet-stream", b"raw"),
        (b"j", b"", b"{}"),
    ]
    for kind in (bytes, bytearray, memoryview):
        assert plain(parse_multipart(kind(body), TYPE)) == expected


@pytest.mark.parametrize(
    "content_type", [b"text/plain; charset=utf-8", b"application/json", b"a/b"]
)
def test_only_files_have_a_type(content_type):
    """Many clients send a type with each field; handlers get its bytes all the same."""
    header = b'Content-Disposition: form-data; name="a"%b\r\nContent-Type: ' + content_type
    body = form(part(header % b"", b"1"), part(header % b'; filename="f"', b"1"))
    field, file = plain(parse_multipart(body, TYPE))
    assert field == (b"a", b"", b"1")
    assert file == (b"a", content_type.partition(b";")[0], b"1")


def test_large_parts_are_not_copied():
    content = bytes(100_000)
    (large,) = parse_multipart(form(field(b"a", content)), TYPE)
    assert isinstance(large.body, memoryview)
    assert large.body == content
    (small,) = parse_multipart(form(field(b"a", b"x")), TYPE)
    assert isinstance(small.body, bytes)


def test_preamble_epilogue_and_padding():
    body = (
        b"This is ignored.\r\n--XyZ \t\r\n"
        b'Content-Disposition: form-data; name="a"\r\n\r\n1\r\n--XyZ--\r\nand so is this --XyZ'
    )
    assert plain(parse_multipart(body, TYPE)) == [(b"a", b"", b"1")]
    assert parse_multipart(b"--XyZ--", TYPE) == []


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b'form-data; name="a b"', b"a b"),
        (b"form-data; name=token", b"token"),
        (b"form-data;name=token;filename=x", b"token"),
        (b'form-data; name="say \\"hi\\""', b'say "hi"'),
        (b'form-data; name="back\\\\slash"', b"back\\slash"),
        (b'form-data; name="C:\\temp\\x"', b"C:\\temp\\x"),
        (b'form-data; name="semi;colon=1"; filename="n;ame=2"', b"semi;colon=1"),
        (b'form-data; filename="name=no"; name="yes"', b"yes"),
        (b'form-data; name=""', b""),
        (b'form-data; name="%22"', b"%22"),
        (b'form-data; NAME="upper"', b"upper"),
        (b'form-data; name="first"; name="second"', b"first"),
        (b'form-data; name="\xc3\xa9"', b"\xc3\xa9"),
        (b'form-data; name="a"; ', b"a"),
    ],
)
def test_names(disposition, name):
    (parsed,) = parse_multipart(form(part(b"Content-Disposition: " + disposition, b"")), TYPE)
    assert parsed.name == name


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--Other\r\n\r\n--Other--",
        b"--XyZ",
        b"--XyZ\r\n",
        b"--XyZjunk\r\n" + field(b"a"),
        field(b"a"),  # no last boundary
        form(part(b"", b"no headers")),
        b"--XyZ\r\n\r\nno headers\r\n--XyZ--",
        form(part(b"Content-Type: a/b", b"no disposition")),
        form(part(b"Content-Disposition: form-data", b"no name")),
        form(part(b'Content-Disposition: attachment; name="a"', b"")),
        form(part(b'Content-Disposition: form-data; name="open', b"")),
        form(part(b"Content-Disposition: form-data; name", b"")),
        form(part(b"no colon", b"")),
        b"--XyZ\nContent-Disposition: form-data; name=a\n\nx\n--XyZ--",
        b'--XyZ\r\nContent-Disposition: form-data; name="a"\r\n--XyZ--',
    ],
)
def test_malformed(body):
    with pytest.raises(InvalidArgument):
        parse_multipart(body, TYPE)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'multipart/form-data; charset=utf-8; Boundary="a b:c"', b"a b:c"),
        (b"multipart/form-data;boundary=" + b"x" * 70, b"x" * 70),
        (b"multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxk; x=y", None),
        (b"multipart/form-data; boundary=a/b", b"a/b"),
    ],
)
def test_boundaries(content_type, boundary):
    if boundary is None:
        boundary = b"----WebKitFormBoundary7MA4YWxk"
    assert find_boundary(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b'multipart/form-data; boundary="ends with space "',
        b'multipart/form-data; boundary="unfinished',
        b"multipart/form-data; boundary=" + b"x" * 71,
        b'multipart/form-data; boundary="a\\"b"',
        b'multipart/form-data; boundary="a\xffb"',
        b"multipart/form-data; boundary",
    ],
)
def test_invalid_boundaries(content_type):
    with pytest.raises(InvalidArgument):
        find_boundary(content_type)


def test_limits():
    parts = [field(b"a")] * 5
    limits = FormLimits(max_parts=5, max_part_header_bytes=100)
    assert len(parse_multipart(form(*parts), TYPE, limits)) == 5
    with pytest.raises(InvalidArgument, match="more than 5"):
        parse_multipart(form(*parts, field(b"b")), TYPE, limits)
    with pytest.raises(InvalidArgument, match="too long"):
        parse_multipart(form(field(b"x" * 100)), TYPE, limits)


@pytest.mark.parametrize(
    "filler",
    [
        b"\r\n--Xy",
        b"\r\n--XyZ"[:-1] * 3,
        b"\r",
        b"\r\n",
        b"\r\n-",
        b"-",
        b"--XyZ",
        b"--" + b"-" * 60,
        b"\r\n--" + b"a" * 69 + b"c",
    ],
)
@pytest.mark.parametrize("boundary", [b"XyZ!"[:3] + b"9", b"-" * 70, b"a" * 69 + b"b", b"-"])
def test_cve_2024_9056_boundary_search_is_linear(filler, boundary):
    """A body made to look like its boundary over and over must not cost more than reading it."""
    size = 6_500_000
    head = b'--%b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' % boundary
    body = head + filler * (size // len(filler)) + b"\r\n--%b--" % boundary
    started_s = time.perf_counter()
    with contextlib.suppress(InvalidArgument):  # some fillers contain the boundary
        parse_multipart(body, b"multipart/form-data; boundary=" + boundary)
    assert time.perf_counter() - started_s < 1


@pytest.mark.parametrize(
    "value",
    [
        b"form-data; " + b"a=b; " * 1600,
        b'form-data; name="' + b"\\" * 8000,
        b'form-data; name="' + b'\\"' * 4000,
        b"form-data;" + b" " * 8000,
        b"form-data" + b";" * 8000,
        b"form-data; " + b"a" * 8000,
        b"form-data; a=" + b"b" * 8000 + b'"',
        b"form-data" + b' ; a ="b"' * 900 + b"!",
    ],
)
def test_header_parameters_take_linear_time(value):
    body = form(part(b"Content-Disposition: " + value, b""))
    started_s = time.perf_counter()
    with pytest.raises(InvalidArgument):
        parse_multipart(body, TYPE)
    assert time.perf_counter() - started_s < 0.2


PARTS = st.lists(
    st.tuples(
        st.binary(max_size=20).filter(lambda name: not set(name) & set(b'"\\\r\n')),
        st.one_of(st.none(), st.sampled_from([b"text/plain", b"image/png"])),
        st.one_of(
            st.binary(max_size=300),
            st.lists(
                st.sampled_from([b"\r\n", b"--", b"XyZ", b"\r", b"-", b"x" * 5000]), max_size=10
            ).map(b"".join),
        ).filter(lambda body: b"\r\n--XyZ" not in b"\r\n" + body),
    ),
    max_size=8,
)


@given(PARTS)
def test_what_is_composed_comes_back(parts):
    pieces = []
    for name, content_type, body in parts:
        headers = b'Content-Disposition: form-data; name="%b"' % name
        if content_type is not None:
            headers += b"; filename=f\r\nContent-Type: " + content_type
        pieces.append(part(headers, body))
    parsed = parse_multipart(form(*pieces), TYPE)
    assert plain(parsed) == [
        (name, content_type or b"", body) for name, content_type, body in parts
    ]


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from(
                [b"--XyZ", b"--XyZ--", b"\r\n", b"\r\n\r\n", field(b"a"), b"Content-Disposition: "]
            ),
        ),
        max_size=15,
    ).map(b"".join)
)
def test_any_bytes_give_parts_or_a_refusal(body):
    try:
        parts = parse_multipart(body, TYPE)
    except InvalidArgument:
        return
    assert sum(len(parsed.body) for parsed in parts) <= len(body)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", []),
        (b"a=1", [(b"a", b"1")]),
        (b"a=1&b=&c&a=2", [(b"a", b"1"), (b"b", b""), (b"c", b""), (b"a", b"2")]),
        (b"a+b=c+d%20e", [(b"a b", b"c d e")]),
        (b"a=%C3%A9%ff", [(b"a", b"\xc3\xa9\xff")]),
        (b"a=b=c", [(b"a", b"b=c")]),
        (b"&&a=1&", [(b"a", b"1")]),
        (b"a;b=1", [(b"a;b", b"1")]),
        (b"%2B=%26", [(b"+", b"&")]),
    ],
)
def test_parse_form(body, fields):
    expected = [FormPart(name, b"", value) for name, value in fields]
    assert parse_form(body) == expected
    assert parse_form(bytearray(body)) == expected


def test_form_fields_are_limited():
    assert len(parse_form(b"&".join([b"a=1"] * 10), max_fields=10)) == 10
    with pytest.raises(InvalidArgument):
        parse_form(b"&" * 10_000_000, max_fields=10)
