"""Large bodies: read from the socket straight into their place, with every rule as for others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fakes import wait_until

from ts_frontend.http.listener import Listener
from ts_frontend.http.request import HttpRequest

Serve = Callable[..., Awaitable[Listener]]
Connect = Callable[..., Awaitable[Any]]

THRESHOLD = 10_000
BODY = random.Random(7).randbytes(300_000)


class Places:
    """Rooms of plain memory, as many as there are."""

    threshold = THRESHOLD

    def __init__(self, rooms: int = 100) -> None:
        self.rooms = rooms
        self.sizes: list[int] = []

    def place(self, size: int) -> memoryview | None:
        if len(self.sizes) == self.rooms:
            return None
        self.sizes.append(size)
        return memoryview(bytearray(size))


def echo(request: HttpRequest) -> None:
    request.respond(200, bytes(request.body))


def post(body: bytes, *headers: str, size: int | None = None) -> bytes:
    lines = [
        "POST / HTTP/1.1",
        "host: h",
        f"content-length: {len(body) if size is None else size}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("split", [1, 100, 5_000, 9_000, 70_000, 1_000_000])
async def test_the_body_arrives_whole_however_it_comes(
    serve: Serve, connect: Connect, split: int
) -> None:
    places = Places()
    client = await connect(await serve(echo, bodies=places))
    body = BODY if split > 100 else BODY[: THRESHOLD * 2]
    data = post(body) * 2 + post(b"small") + post(body)
    reading = asyncio.create_task(_answers(client, 4))
    for start in range(0, len(data), split):
        await client.send(data[start : start + split])
        if split > 1:
            await asyncio.sleep(0)
    assert await reading == [body, body, b"small", body]
    assert places.sizes == [len(body)] * 3


async def _answers(client: Any, count: int) -> list[bytes]:
    return [(await client.answer()).body for _ in range(count)]


async def test_one_after_the_other_and_small_ones_between(serve: Serve, connect: Connect) -> None:
    places = Places()
    client = await connect(await serve(echo, bodies=places))
    for size in (THRESHOLD * 9, 5, THRESHOLD * 30, THRESHOLD * 8, THRESHOLD - 1, 0, 200_000):
        assert (await client.ask(post(BODY[:size]))).body == BODY[:size]
    assert places.sizes == [THRESHOLD * 9, THRESHOLD * 30, THRESHOLD * 8, 200_000]


async def test_without_room_it_is_read_as_ever(serve: Serve, connect: Connect) -> None:
    places = Places(rooms=1)
    client = await connect(await serve(echo, bodies=places))
    for _ in range(3):
        assert (await client.ask(post(BODY))).body == BODY
    assert len(places.sizes) == 1


async def test_a_chunked_body_has_no_place(serve: Serve, connect: Connect) -> None:
    places = Places()
    client = await connect(await serve(echo, bodies=places))
    head = b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(BODY), BODY)
    assert (await client.ask(head + chunk + b"0\r\n\r\n")).body == BODY
    assert not places.sizes


async def test_a_client_that_waits_for_the_word_gets_it(serve: Serve, connect: Connect) -> None:
    places = Places()
    client = await connect(await serve(echo, bodies=places))
    for _ in range(2):
        head = post(b"", "expect: 100-continue", size=len(BODY))
        assert (await client.ask(head)).status == 100
        assert (await client.ask(BODY)).body == BODY
    assert places.sizes == [len(BODY)] * 2


async def test_the_last_request_of_a_connection(serve: Serve, connect: Connect) -> None:
    client = await connect(await serve(echo, bodies=Places()))
    answer = await client.ask(post(BODY, "connection: close"))
    assert answer.body == BODY
    assert await client.is_closed()


async def test_what_is_too_large_gets_no_place(serve: Serve, connect: Connect) -> None:
    places = Places()
    client = await connect(
        await serve(echo, bodies=places, limits={"max_body_bytes": THRESHOLD * 2})
    )
    assert (await client.ask(post(BODY))).status == 413
    assert (await client.ask(post(BODY[: THRESHOLD * 2]))).status == 200
    assert places.sizes == [THRESHOLD * 2]


@pytest.mark.parametrize("sent", [0, 100, 20_000])
async def test_a_body_that_stops_coming_is_answered_and_its_place_let_go(
    serve: Serve, connect: Connect, sent: int
) -> None:
    listener = await serve(
        echo, bodies=Places(), limits={"body_timeout_s": 0.1, "min_body_bytes_per_s": 10**9}
    )
    client = await connect(listener)
    await client.ask(post(BODY))
    answer = await client.ask(post(BODY[:sent], size=len(BODY)))
    assert answer.status == 408
    assert await client.is_closed()
    await wait_until(lambda: not listener.connections)


async def test_a_client_that_leaves_within_the_body_is_forgotten(
    serve: Serve, connect: Connect
) -> None:
    listener = await serve(echo, bodies=Places())
    client = await connect(listener)
    await client.ask(post(BODY))
    await client.send(post(BODY[:50_000], size=len(BODY)))
    await wait_until(lambda: any(each._place is not None for each in listener.connections))
    (connection,) = listener.connections
    await client.close()
    await wait_until(lambda: not listener.connections)
    assert connection._place is None


async def test_a_client_that_half_closes_gets_its_answer(serve: Serve, connect: Connect) -> None:
    client = await connect(await serve(echo, bodies=Places()))
    await client.ask(post(BODY))
    await client.send(post(BODY))
    client.writer.write_eof()
    assert (await client.answer()).body == BODY
    assert await client.is_closed()


async def test_a_client_that_leaves_while_it_is_served_is_noticed(
    serve: Serve, connect: Connect
) -> None:
    left = asyncio.Event()

    def wait(request: HttpRequest) -> None:
        request.on_disconnect = left.set

    client = await connect(await serve(wait, bodies=Places()))
    await client.send(post(BODY))
    await client.close()
    await asyncio.wait_for(left.wait(), 10)


async def test_what_a_client_sends_ahead_of_its_answer_is_bounded(
    serve: Serve, connect: Connect
) -> None:
    waiting: list[HttpRequest] = []
    listener = await serve(waiting.append, bodies=Places())
    client = await connect(listener)
    reading = asyncio.create_task(_answers(client, 3))
    sending = asyncio.create_task(client.send(post(BODY) * 3))
    for _ in range(3):
        await wait_until(lambda: waiting)
        (connection,) = listener.connections
        assert len(connection._unread) <= 512 * 1024
        request = waiting.pop()
        request.respond(200, bytes(request.body))
    await sending
    assert await reading == [BODY] * 3
