"""Lines and batches of the access log."""

from __future__ import annotations

import asyncio

import pytest

from ts_frontend.http.access_log import AccessEntry, AccessLog, format_entry

ENTRY = AccessEntry("/127.0.0.1:53514", "GET", b"/models", "1.1", 200, 0.0029)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (ENTRY, '/127.0.0.1:53514 "GET /models HTTP/1.1" 200 2'),
        (
            ENTRY._replace(target=b"/\xff?a=%0A", seconds=1.5),
            '/127.0.0.1:53514 "GET /\\xff?a=%0A HTTP/1.1" 200 1500',
        ),
    ],
)
def test_format(entry, line):
    assert format_entry(entry) == line


async def test_entries_are_written_after_the_interval():
    written = asyncio.Queue()
    log = AccessLog(written.put_nowait, flush_interval_s=0.01)
    log.append(ENTRY)
    log.append(ENTRY)
    assert written.empty()
    assert len(await written.get()) == 2
    log.append(ENTRY)
    assert len(await written.get()) == 1


async def test_a_full_batch_is_written_at_once():
    batches = []
    log = AccessLog(batches.append, flush_interval_s=1000, flush_entries=3)
    for _ in range(7):
        log.append(ENTRY)
    assert [len(batch) for batch in batches] == [3, 3]
    log.flush()
    log.flush()
    assert [len(batch) for batch in batches] == [3, 3, 1]
