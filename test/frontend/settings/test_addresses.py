"""The grammar of listening addresses."""

import pytest

from ts_frontend.core.errors import InvalidArgument
from ts_frontend.settings.addresses import Address, is_loopback, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://127.0.0.1:8080", Address("http", "127.0.0.1", 8080)),
        ("HTTP://Some.Host:1", Address("http", "Some.Host", 1)),
        ("https://h:8443", Address("https", "h", 8443)),
        ("http://h", Address("http", "h", 81)),
        ("https://h", Address("https", "h", 82)),
        ("http://h:0", Address("http", "h", 0)),
        ("http://[::1]:8080", Address("http", "::1", 8080)),
        ("unix:/tmp/a.sock", Address("unix", path="/tmp/a.sock")),
        ("UNIX:/a b", Address("unix", path="/a b")),
    ],
)
def test_parse_address(text, address):
    assert parse_address(text, 81, 82) == address


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0.1", "ftp://h:1", "http://", "http://h:", "http://h:x", "http://h/", "http://a:b:1",
     "unix:", "unix:relative", "http://h:80/path", "http:///x", " http://h:1"],
)  # fmt: skip
def test_invalid_address(text):
    with pytest.raises(InvalidArgument, match="Invalid binding address"):
        parse_address(text)


@pytest.mark.parametrize("port", ["65535", "70000", "99999999999999999999"])
def test_invalid_port(port):
    with pytest.raises(InvalidArgument, match=f"Invalid port number: {port}"):
        parse_address(f"http://h:{port}")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST."]
)
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example", "::ffff:8.8.8.8", ""]
)
def test_not_loopback(host):
    assert not is_loopback(host)


def test_only_a_unix_socket_or_loopback_is_local():
    assert parse_address("unix:/x").is_local
    assert parse_address("http://localhost:1").is_local
    assert not parse_address("https://0.0.0.0:1").is_local
