"""Milliseconds out of headers."""

from __future__ import annotations

import pytest

from ts.protocol.header_block import HeaderBlock
from ts_frontend.core.deadline import DeadlineHeaders
from ts_frontend.core.errors import InvalidArgument

NAMES = ("X-Request-Timeout-Ms", "x-other")

READINGS = [
    ([], None),
    ([(b"host", b"x"), (b"x-request-timeout-mt", b"5")], None),
    ([(b"x-request-timeout-ms", b"250")], 0.25),
    ([(b"X-REQUEST-Timeout-ms", b"0")], 0.0),
    ([(b"x-request-timeout-ms", b"250"), (b"X-Other", b"100")], 0.1),
    ([(b"x-other", b"300"), (b"x-request-timeout-ms", b"250")], 0.25),
]


@pytest.mark.parametrize(("headers", "seconds"), READINGS)
def test_reading(headers: list[tuple[bytes, bytes]], seconds: float | None) -> None:
    assert DeadlineHeaders(NAMES).read_s(headers) == seconds
    assert DeadlineHeaders(NAMES).read_s(HeaderBlock(headers)) == seconds


@pytest.mark.parametrize("value", [b"", b"-1", b"1.5", b"2s", b"1" * 13, b"\xb2"])
def test_what_is_no_number_is_the_client_s_mistake(value: bytes) -> None:
    with pytest.raises(InvalidArgument, match="x-other must be a whole number of milliseconds"):
        DeadlineHeaders(NAMES).read_s([(b"x-other", value)])


def test_without_names_nothing_is_read() -> None:
    assert DeadlineHeaders(()).read_s([(b"x-other", b"nonsense"), (b"", b"")]) is None
