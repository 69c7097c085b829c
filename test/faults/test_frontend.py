"""The end of the server process itself, asked for and not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import psutil
import pytest
from faults.load import Ask, Connection, Fate, Ledger, Load, echo_asks, is_marked_stream, stream_of
from serving import RunningServer, children_of, start_server, wait_until

MODELS = "ids.mar,marked_stream.mar"


def is_free(address: str) -> bool:
    place = urlsplit(address)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((place.hostname, place.port))
        except OSError:
            return False
    return True


async def test_serve_1815_a_killed_server_leaves_nothing_that_the_next_one_minds(
    start, store
) -> None:
    """kill -9: no worker stays, the ports are free, the next start removes what is left on disk."""
    killed = start(load_models=MODELS, default_workers_per_model=1)
    killed.wait_ready("ids")
    killed.wait_ready("marked_stream")
    workers = children_of(killed.process.pid)
    assert len(workers) >= 2
    temp = killed.folder / "tmp"
    ledger = Ledger()
    asks = [*echo_asks("ids"), Ask("stream", "marked_stream", stream_of(20), is_marked_stream)]
    async with Load(killed.inference, asks, ledger, lanes=4).running():
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(killed.stop, signal.SIGKILL) == -9
    # Those on the way are lost with it; nobody waits for ever or gets a wrong answer.
    assert ledger.imbalance(Fate.CUT, Fate.LOST) == [], str(ledger)
    # One for each of the four, and what is sent over connections that the kernel still accepts
    # while it takes the process down.
    assert ledger.fates[Fate.CUT] + ledger.fates[Fate.LOST] <= 40 < ledger.sent

    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
    assert all(is_free(it) for it in (killed.inference, killed.management, killed.metrics))
    left = [*temp.glob("ts-*"), *(temp / "models").iterdir()]
    assert len(left) == 3

    following = start_server(
        killed.folder,
        store,
        inference_address=killed.inference,
        management_address=killed.management,
        metrics_address=killed.metrics,
        load_models=MODELS,
        default_workers_per_model=1,
    )
    following.wait_ready("ids")
    assert following.predict("ids", "next").text == "next"
    assert not [path for path in left if path.exists()]
    assert following.log.read_text().count("left by a server that was killed") == 3
    assert following.stop() == 0
    assert list(temp.glob("ts-*")) == []
    assert list((temp / "models").iterdir()) == []
    following.session.close()


def test_two_servers_in_one_temporary_folder_leave_each_other_alone(start, store) -> None:
    first = start(load_models="ids.mar", default_workers_per_model=1)
    first.wait_ready("ids")
    second = start_server(first.folder, store, load_models="ids.mar", default_workers_per_model=1)
    assert second.stop() == 0
    second.session.close()
    first_worker = first.worker_pids("ids")[0]
    os.kill(first_worker, signal.SIGKILL)
    # The next worker needs the folder of sockets and the unpacked archive.
    wait_until(lambda: first.worker_pids("ids")[0] not in (first_worker, -1), what="a new worker")
    first.wait_ready("ids")
    assert first.predict("ids", "still").text == "still"


@pytest.mark.parametrize("turn", range(2))
async def test_serve_2008_whatever_was_sent_before_the_end_is_answered(
    start: Callable[..., RunningServer], turn: int
) -> None:
    """SIGTERM under load: sent = answered, no connection is reset, status 0."""
    server = start(load_models=MODELS, default_workers_per_model=1)
    server.wait_ready("ids")
    server.wait_ready("marked_stream")
    ledger = Ledger()
    asks = [*echo_asks("ids"), Ask("stream", "marked_stream", stream_of(50), is_marked_stream)]
    load = Load(server.inference, asks, ledger, lanes=8, seed=turn)
    ended: list[int] = []
    async with load.running():
        await asyncio.sleep(0.5)
        waiting = threading.Thread(target=lambda: ended.append(server.stop()))
        waiting.start()
        await asyncio.to_thread(waiting.join)
    assert ended == [0]
    assert ledger.imbalance() == [], str(ledger)
    assert ledger.sent > 50


async def test_the_second_signal_ends_a_server_that_waits(start) -> None:
    server = start(load_models="misbehaves.mar", default_workers_per_model=1, shutdown_timeout=60)
    server.wait_ready("misbehaves")
    workers = children_of(server.process.pid)
    connection = await Connection.open(server.inference)
    hanging = Ask("", "misbehaves", lambda mark: b"m\nhang 60")
    await connection.send(hanging.request(""))
    server.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(
        wait_until, lambda: "Stopping: no new requests" in server.log.read_text(), what="the word"
    )
    assert server.process.poll() is None
    assert await asyncio.to_thread(server.stop) == 1
    connection.reset()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
