"""Clients that leave, dawdle, flood and talk nonsense: nobody but themselves is worse off."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

import psutil
import pytest
from faults.load import (
    Answer,
    Ask,
    Connection,
    Fate,
    Ledger,
    Load,
    echo_asks,
    is_marked_stream,
    padded,
    stream_of,
)
from serving import RunningServer, wait_until

MIB = 1024 * 1024
HEADER_TIMEOUT_S = 1
BODY_TIMEOUT_S = 2


@pytest.fixture(scope="module")
def server(start: Callable[..., RunningServer]) -> RunningServer:
    running = start(
        http_header_timeout=HEADER_TIMEOUT_S,
        http_body_timeout=BODY_TIMEOUT_S,
        max_response_buffer=4 * MIB,
        max_connections=3000,
        job_queue_size=300,
    )
    for name, workers in {"ids": 2, "marked_stream": 2, "misbehaves": 1}.items():
        answer = running.register(f"{name}.mar", initial_workers=workers, batch_size=1)
        assert answer.status_code == 200, answer.text
    return running


@pytest.fixture
async def neighbours(server: RunningServer):
    """Well-behaved clients beside a test's: each is answered, and soon."""
    pids = {model: server.worker_pids(model) for model in ("ids", "marked_stream", "misbehaves")}
    ledger = Ledger("neighbour")
    # On connections that stay: a new one may find the server full.
    asks = [ask for ask in echo_asks("ids") if not ask.closes]
    load = Load(server.inference, asks, ledger, lanes=3, rate_per_s=200)
    async with load.running():
        yield ledger
    assert ledger.imbalance() == [], str(ledger)
    assert ledger.sent > 0
    assert ledger.slowest_s < 2
    assert pids == {model: server.worker_pids(model) for model in pids}


def resident_bytes(server: RunningServer) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


def connections(server: RunningServer) -> int:
    return len(psutil.Process(server.process.pid).net_connections("tcp"))


async def test_serve_1888_clients_that_abort_leave_the_workers_alone(server, neighbours) -> None:
    """The abort of one request had ended its worker, and with it the next requests."""
    before = connections(server)
    asks = [
        Ask("abort in the body", "ids", padded(300_000), leaves="sending"),
        Ask("abort in a chunked body", "ids", padded(3000), is_chunked=True, leaves="sending"),
        Ask("abort while waiting", "misbehaves", lambda mark: b"m\nhang 1", leaves="waiting"),
        Ask("abort while streaming", "marked_stream", stream_of(50, 1000), leaves="reading"),
        Ask("stream", "marked_stream", stream_of(20), is_marked_stream, weight=3),
    ]
    ledger = Ledger("leaver")
    async with Load(server.inference, asks, ledger, lanes=8, expected={200, 503}).running():
        await asyncio.sleep(2)
    assert ledger.imbalance(Fate.LEFT) == [], str(ledger)
    assert ledger.fates[Fate.LEFT] > 100
    await asyncio.to_thread(
        wait_until, lambda: connections(server) <= before + 4, what="the end of their connections"
    )


@pytest.mark.parametrize("model", ["cooperates", "sleeps_async"])
async def test_serve_1888_two_hundred_aborts_leave_no_worker_busy(server, model) -> None:
    """Handlers of ten seconds that can be told to stop: a second later nobody works for nobody."""
    answer = server.register(f"{model}.mar", initial_workers=1, batch_size=1)
    assert answer.status_code == 200, answer.text
    try:
        pids = server.worker_pids(model)
        usual_s = min([await answer_s(server, model) for _ in range(5)])
        for at_once in (1, 199):  # at work, and waiting where one is all that the handler takes
            begun = server.requests_to(model)
            leaving = [await Connection.open(server.inference) for _ in range(at_once)]
            for connection in leaving:
                await connection.send(Ask("", model, lambda mark: b"10").request(""))
            await until(lambda n=begun + at_once: server.requests_to(model) >= n, "the requests")
            assert server.metric("ts_busy_workers", model) == 1
            began_s = time.monotonic()
            for connection in leaving:
                connection.reset()
            await until(lambda: server.metric("ts_busy_workers", model) == 0, "the end of the work")
            assert time.monotonic() - began_s < 1
            assert await answer_s(server, model) < usual_s + 0.5
        assert server.worker_pids(model) == pids
        assert server.metric("ts_worker_restarts_total", model) == 0
    finally:
        server.session.delete(f"{server.management}/models/{model}", timeout=20)


async def answer_s(server: RunningServer, model: str) -> float:
    """Seconds that a request of no work takes."""
    began_s = time.monotonic()
    answer = await asyncio.to_thread(server.predict, model, b"0")
    assert answer.status_code == 200, answer.text
    return time.monotonic() - began_s


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what=what)


async def test_a_client_that_shuts_down_its_sending_side_gets_its_answer(server) -> None:
    for order, expected in ((b"m\nhang 1", b"m"), (b"m\nhuge 3000000", b"m".ljust(3_000_000))):
        connection = await Connection.open(server.inference)
        await connection.send(Ask("", "misbehaves", lambda mark, o=order: o).request(""))
        connection.writer.write_eof()
        answer = await connection.answer()
        assert (answer.status, answer.body) == (200, expected)
        assert await connection.reader.read() == b""
        await connection.close()


async def test_a_stream_that_is_not_read_costs_its_buffer_and_no_more(server, neighbours) -> None:
    before_bytes = resident_bytes(server)
    ask = Ask("", "marked_stream", stream_of(3000, 20_000))  # 60 MB
    lazy = [await Connection.open(server.inference) for _ in range(3)]
    for connection in lazy:
        connection.writer.transport.pause_reading()
        await connection.send(ask.request("lazy"))
    assert len(lazy) * ask_bytes(ask) > 100 * MIB

    highest = 0

    def all_are_cut() -> bool:
        nonlocal highest
        highest = max(highest, resident_bytes(server) - before_bytes)
        return served(server, lazy) == 0

    await asyncio.to_thread(wait_until, all_are_cut, what="the cut of those that do not read")
    assert highest < 48 * MIB, f"{highest / MIB:.0f} MiB"
    for connection in lazy:
        connection.writer.transport.resume_reading()
        answer = await connection.answer()
        assert answer.status == 200
        assert not answer.is_whole
        connection.reset()
    # Their workers are free again.
    connection = await Connection.open(server.inference)
    await connection.send(Ask("", "marked_stream", stream_of(2)).request("next"))
    assert is_marked_stream("next", await connection.answer())
    await connection.close()


def ask_bytes(ask: Ask) -> int:
    count, size = ask.body("").split(b"\n")[1].split()
    return int(count) * int(size)


def served(server: RunningServer, clients: list[Connection]) -> int:
    """How many of these clients the server has a connection to."""
    ports = {client.writer.get_extra_info("sockname")[1] for client in clients}
    found = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(1 for it in found if it.raddr and it.raddr.port in ports)


async def dawdle(server: RunningServer, head: bytes, piece: bytes, pause_s: float) -> Answer:
    """Send `head`, then a piece now and then, until the server has had enough."""
    connection = await Connection.open(server.inference)

    async def feed() -> None:
        with contextlib.suppress(ConnectionError):
            await connection.send(head)
            while True:
                await asyncio.sleep(pause_s)
                await connection.send(piece)

    feeding = asyncio.create_task(feed())
    try:
        return await connection.answer()
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        await connection.close()


POST = b"POST /predictions/ids HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "piece", "limit_s"),
    [
        (POST, b"A: b\r\n", HEADER_TIMEOUT_S),
        (POST + b"Content-Length: 100000\r\n\r\n", b"x", BODY_TIMEOUT_S),
        (POST + CHUNKED, b"1\r\nx\r\n", BODY_TIMEOUT_S),
        (POST + CHUNKED + b"1\r\nx\r\n0\r\n", b"A: b\r\n", BODY_TIMEOUT_S),
    ],
    ids=["head", "body", "chunks", "trailers"],
)
async def test_slow_loris(server, neighbours, head, piece, limit_s) -> None:
    """Heads and bodies that never end, a few bytes at a time, from many at once."""
    began_s = time.monotonic()
    async with asyncio.timeout(limit_s + 6):
        answers = await asyncio.gather(*(dawdle(server, head, piece, 0.3) for _ in range(100)))
    assert {answer.status for answer in answers} == {408}
    assert time.monotonic() - began_s > limit_s / 2  # the sweep is coarse


@pytest.mark.parametrize("count", [100_000, 1_000_000])
async def test_cve_2025_23310_a_flood_of_one_byte_chunks(server, neighbours, count) -> None:
    before_bytes = resident_bytes(server)
    connection = await Connection.open(server.inference)
    await connection.send(POST + CHUNKED)
    answering = asyncio.create_task(connection.answer())
    with contextlib.suppress(ConnectionError):
        for _ in range(count // 1000):
            await connection.send(b"1\r\nx\r\n" * 1000)
        await connection.send(b"0\r\n\r\n")
    answer = await asyncio.wait_for(answering, 10)
    # Enough sent after the refusal, and the reset may overtake it.
    assert answer.status == 413 or not answer.has_begun
    assert resident_bytes(server) - before_bytes < 16 * MIB
    await connection.close()


async def test_pipelined_garbage_ends_the_connection_after_the_answers_before_it(server) -> None:
    good = [Ask("", "ids").request(f"pipelined-{number}") for number in range(20)]
    smuggled = POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    for garbage in (b"\x00\xff garbage \r\n\r\n", smuggled, b"GET / HTTP/9.9\r\n\r\n"):
        connection = await Connection.open(server.inference)
        await connection.send(b"".join(good) + garbage + good[0])
        answers = [await connection.answer() for _ in range(21)]
        own = [f"pipelined-{number}".encode() for number in range(20)]
        assert [answer.body for answer in answers[:20]] == own
        assert (answers[20].status, answers[20].closes) == (400, True)
        assert await connection.reader.read() == b""
        await connection.close()


async def test_many_idle_connections(server, neighbours) -> None:
    """More than the server takes (3000): the surplus hears so, the others can still be used."""
    before, before_bytes = connections(server), resident_bytes(server)
    held: list[Connection] = []
    for _ in range(0, 3100, 100):
        held += await asyncio.gather(*(Connection.open(server.inference) for _ in range(100)))
    refused = 0
    for connection in held[-150:]:
        with contextlib.suppress(TimeoutError):
            answer = await asyncio.wait_for(connection.answer(), 0.05)
            assert answer.status == 503
            refused += 1
    assert 90 <= refused <= 120
    assert resident_bytes(server) - before_bytes < 3000 * 24 * 1024
    for connection in held[:20]:
        await connection.send(Ask("", "ids").request("still there"))
        assert (await connection.answer()).body == b"still there"
    for connection in held:
        connection.reset()
    await asyncio.to_thread(
        wait_until, lambda: connections(server) <= before + 4, what="the end of idle connections"
    )


def test_a_client_that_only_connects_is_let_go(server: RunningServer) -> None:
    place = server.inference.removeprefix("http://").split(":")
    with socket.create_connection((place[0], int(place[1])), timeout=20) as client:
        client.sendall(POST)
        heard = client.recv(4096)
        assert heard.startswith(b"HTTP/1.1 408 ")
