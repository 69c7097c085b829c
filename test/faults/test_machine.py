"""A machine that runs out of disk or descriptors: the server says so, goes on and recovers."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest
from faults.load import Ask, Connection, Ledger, Load, echo_asks
from serving import RunningServer, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sets limits of another process")


@pytest.fixture(scope="module")
def server(start: Callable[..., RunningServer]) -> RunningServer:
    running = start()
    assert running.register("ids.mar", initial_workers=1).status_code == 200
    return running


@contextlib.contextmanager
def limited(server: RunningServer, what: int, value: int) -> Iterator[None]:
    """The server may have only so much of a resource for as long as the block lasts."""
    process = psutil.Process(server.process.pid)
    before = process.rlimit(what)
    process.rlimit(what, (value, before[1]))
    try:
        yield
    finally:
        process.rlimit(what, before)


async def test_serve_464_logs_on_a_full_disk_cost_their_lines_and_nothing_else(server) -> None:
    log = server.folder / "logs" / "access_log.log"
    ledger = Ledger()
    load = Load(server.inference, echo_asks("ids"), ledger, lanes=4, rate_per_s=500)
    wait_until(lambda: log.stat().st_size > 0, what="the first line")
    async with load.running():
        # Every file of the server is longer than this: none may grow.
        with limited(server, resource.RLIMIT_FSIZE, 10):
            await asyncio.sleep(1)
            full = log.stat().st_size
            await asyncio.sleep(0.3)
            assert log.stat().st_size == full
        await asyncio.to_thread(
            wait_until,
            lambda: "log records could not be written here." in log.read_text(),
            what="a word about the lines that are missing",
        )
    assert ledger.imbalance() == [], str(ledger)
    assert "log records could not be written here." in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_serve_464_a_model_on_a_full_disk_is_refused_and_leaves_nothing(server) -> None:
    models = server.folder / "tmp" / "models"
    before = sorted(models.iterdir())
    with limited(server, resource.RLIMIT_FSIZE, 10):
        answer = server.register("marked_stream.mar", initial_workers=1)
    assert (answer.status_code, answer.json()["type"]) == (500, "InternalServerException")
    assert "Failed to save model: marked_stream.mar" in answer.json()["message"]
    assert sorted(models.iterdir()) == before
    assert server.register("marked_stream.mar", initial_workers=1).status_code == 200


async def test_no_descriptor_left_for_new_clients(server) -> None:
    """Those that are connected are served, new ones wait or hear of it, and all is well again."""
    process = psutil.Process(server.process.pid)
    kept = await Connection.open(server.inference)
    ask = Ask("", "ids")
    await kept.send(ask.request("first"))
    assert (await kept.answer()).body == b"first"
    crowd = []
    log = server.folder / "logs" / "ts_log.log"
    try:
        with limited(server, resource.RLIMIT_NOFILE, process.num_fds() + 5):
            for _ in range(40):
                with contextlib.suppress(OSError):
                    crowd.append(await Connection.open(server.inference))
            for number in range(50):
                await kept.send(ask.request(f"kept-{number}"))
                async with asyncio.timeout(5):
                    assert (await kept.answer()).body == b"kept-%d" % number
            used_s = sum(process.cpu_times()[:2])
            await asyncio.to_thread(
                wait_until,
                lambda: "new clients are turned away: Too many open files" in log.read_text(),
                what="a word about descriptors in the log",
            )
            assert sum(process.cpu_times()[:2]) - used_s < 0.5, "it spins"
            for connection in crowd:
                connection.writer.transport.abort()
            await asyncio.to_thread(wait_until, lambda: answers(server), what="room for clients")
            await asyncio.to_thread(
                wait_until, lambda: "there is room for new clients" in log.read_text(), what="word"
            )
    finally:
        for connection in (*crowd, kept):
            connection.writer.transport.abort()
    assert log.read_text().count("Too many open files") <= 3  # one for each listener


async def test_no_descriptor_left_for_a_new_worker(server) -> None:
    process = psutil.Process(server.process.pid)
    assert server.predict("ids", "before").text == "before"
    with limited(server, resource.RLIMIT_NOFILE, process.num_fds() + 2):
        psutil.Process(server.worker_pids("ids")[0]).kill()
        log = server.folder / "logs" / "ts_log.log"
        await asyncio.to_thread(
            wait_until,
            lambda: "worker died: cannot start" in log.read_text(),
            what="the start that failed",
        )
        assert server.session.get(f"{server.management}/models/ids", timeout=5).status_code == 200
    server.wait_ready("ids")
    assert server.predict("ids", "after").text == "after"


def answers(server: RunningServer) -> bool:
    try:
        return server.session.get(f"{server.inference}/ping", timeout=1).status_code == 200
    except OSError:
        return False
