"""The workers of these tests run on uvloop, as the server does.

What depends on the loop itself runs on asyncio's own too.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import uvloop

sys.path.append(str(Path(__file__).resolve().parents[2]))  # fakes.py, worker_bench.py

from worker_bench import Bench

from ts_frontend.workers import batch_worker, pool


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    about_loops = ("test_process.py", "test_zygote.py", "test_connections.py")
    is_about_loops = item.path.name in about_loops
    return factories if is_about_loops else {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A signal cannot end a test that hangs in uvloop, so a thread has to."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(60, method="thread"))


@pytest.fixture(autouse=True)
def nothing_is_sent_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a worker counts as fast depends on the machine; the tests that mean it say so."""
    monkeypatch.setattr(batch_worker, "AHEAD_S", 0.0)
    monkeypatch.setattr(pool, "NEXT_S", 0.0)
    monkeypatch.setattr(pool, "NEXT_ALONE_S", 0.0)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Closes its pools and asserts that no task, process, socket, port or job is left of them."""
    tasks = asyncio.all_tasks()
    # The test's own folder may have too long a name for sockets.
    with tempfile.TemporaryDirectory(prefix="ts-") as sockets:
        bench = Bench(tmp_path, Path(sockets))
        yield bench
        async with asyncio.timeout(20):
            for pool in bench.pools:
                await pool.close(0)
        assert asyncio.all_tasks() - tasks - {asyncio.current_task()} == set()
        bench.assert_nothing_is_left()
