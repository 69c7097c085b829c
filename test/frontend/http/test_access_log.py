"""Lines and batches of the access log."""

from __future__ import annotations

import asyncio

import pytest

from ts_frontend.http.access_log import AccessLog

ANSWER = ("/127.0.0.1:53514", "GET", b"/models", "1.1", 200, 0.0029)


@pytest.mark.parametrize(
    ("target", "seconds", "line"),
    [
        (b"/models", 0.0029, '/127.0.0.1:53514 "GET /models HTTP/1.1" 200 2'),
        (b"/\xff?a=%0A", 1.5, '/127.0.0.1:53514 "GET /\\xff?a=%0A HTTP/1.1" 200 1500'),
    ],
)
async def test_format(target, seconds, line):
    lines = []
    log = AccessLog(lines.extend)
    log.note("/127.0.0.1:53514", "GET", target, "1.1", 200, seconds)
    log.flush()
    assert lines == [line]


async def test_lines_are_written_after_the_interval():
    written = asyncio.Queue()
    log = AccessLog(written.put_nowait, flush_interval_s=0.01)
    log.note(*ANSWER)
    log.note(*ANSWER)
    assert written.empty()
    assert len(await written.get()) == 2
    log.note(*ANSWER)
    assert len(await written.get()) == 1


async def test_a_full_batch_is_written_at_once():
    batches = []
    log = AccessLog(batches.append, flush_interval_s=1000, flush_lines=3)
    for _ in range(7):
        log.note(*ANSWER)
    assert [len(batch) for batch in batches] == [3, 3]
    log.flush()
    log.flush()
    assert [len(batch) for batch in batches] == [3, 3, 1]
