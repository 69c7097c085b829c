"""Every kind of connection does the same: one suite over the table `CONNECTIONS`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from fakes import turns, wait_until
from reply_codec import encode_predict_reply

from ts.protocol.messages import (
    LoadReply,
    Prediction,
    PredictReply,
    encode_load_reply,
)
from ts_frontend.workers.connections import CONNECTIONS, load_connection
from ts_frontend.workers.connections.base import SocketConnection

LIMIT = 1 << 20
SUCCESS = "Prediction success"


def prediction(body: bytes) -> Prediction:
    return Prediction(b"id", b"", 200, b"", [], body)


def encoded_reply(body: bytes) -> bytes:
    return b"".join(encode_predict_reply(200, SUCCESS, [prediction(body)]))


LOADED = encode_load_reply(200, "loaded")


class RecordingOwner:
    def __init__(self) -> None:
        self.loads: list[LoadReply] = []
        self.replies: list[PredictReply] = []
        self.losses: list[str] = []
        self.connection: SocketConnection | None = None
        self.closes_at_reply = False

    def on_load_reply(self, reply: LoadReply) -> None:
        self.loads.append(reply)

    def on_predict_reply(self, reply: PredictReply) -> None:
        self.replies.append(reply)
        if self.closes_at_reply and self.connection is not None:
            self.connection.close()

    def on_connection_lost(self, reason: str, is_bad_reply: bool) -> None:
        assert is_bad_reply is ("could not be read" in reason)
        self.losses.append(reason)

    @property
    def bodies(self) -> list[bytes]:
        return [bytes(reply.predictions[0].body) for reply in self.replies]


class Peer:
    """The worker's end of one connection."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        self._loop = asyncio.get_running_loop()

    async def say(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.raw, data)

    async def read(self, size: int) -> bytes:
        """Up to the end of the stream, if that comes first."""
        data = b""
        while len(data) < size and (part := await self._loop.sock_recv(self.raw, size)):
            data += part
        return data


def listen(kind: str, folder: Path) -> tuple[socket.socket, str]:
    if kind == "unix":
        door = socket.socket(socket.AF_UNIX)
        address = str(folder / "s")
        door.bind(address)
    else:
        door = socket.socket()
        door.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{door.getsockname()[1]}"
    door.listen(1)
    door.setblocking(False)
    return door, address


@contextlib.asynccontextmanager
async def connected(
    kind: str, folder: Path
) -> AsyncIterator[tuple[SocketConnection, RecordingOwner, Peer]]:
    door, address = listen(kind, folder)
    owner = RecordingOwner()
    connect = load_connection(kind)
    with door:
        connection = cast(SocketConnection, await connect(address, owner, LIMIT))
        owner.connection = connection
        raw, _ = await asyncio.get_running_loop().sock_accept(door)
    with raw:
        raw.setblocking(False)
        yield connection, owner, Peer(raw)
    connection.close()
    await turns()


@pytest.fixture(params=sorted(CONNECTIONS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c")  # short enough for a socket


async def test_messages_go_out_whole_and_in_order(kind: str, folder: Path) -> None:
    large = bytes(range(256)) * 4096
    async with connected(kind, folder) as (connection, _, peer):
        connection.send([b"one", memoryview(large), bytearray(b"two")])
        connection.send([b"three"])
        expected = b"one" + large + b"twothree"
        assert await peer.read(len(expected)) == expected


async def test_the_first_reply_is_to_load(kind: str, folder: Path) -> None:
    async with connected(kind, folder) as (_, owner, peer):
        await peer.say(LOADED + encoded_reply(b"1") + encoded_reply(b"2"))
        await wait_until(lambda: len(owner.replies) == 2)
        assert owner.loads == [LoadReply(200, "loaded")]
        assert owner.bodies == [b"1", b"2"]


async def test_replies_may_come_byte_by_byte(kind: str, folder: Path) -> None:
    async with connected(kind, folder) as (_, owner, peer):
        for byte in LOADED + encoded_reply(b"body"):
            await peer.say(bytes([byte]))
            await turns(2)
        await wait_until(lambda: owner.replies)
        assert owner.bodies == [b"body"]


async def test_a_large_reply(kind: str, folder: Path) -> None:
    body = bytes(range(256)) * 4000
    async with connected(kind, folder) as (_, owner, peer):
        await peer.say(LOADED + encoded_reply(body) + encoded_reply(b"next"))
        await wait_until(lambda: len(owner.replies) == 2)
        assert owner.bodies == [body, b"next"]


async def test_a_worker_that_closes_is_lost_once(kind: str, folder: Path) -> None:
    async with connected(kind, folder) as (connection, owner, peer):
        peer.raw.close()
        await wait_until(lambda: owner.losses)
        await turns()
        assert owner.losses == ["the worker closed its connection"]
        connection.send([b"too late"])
        connection.close()


async def test_what_was_said_before_the_end_is_heard(kind: str, folder: Path) -> None:
    async with connected(kind, folder) as (_, owner, peer):
        await peer.say(LOADED + encoded_reply(b"last words"))
        peer.raw.close()
        await wait_until(lambda: owner.losses)
        assert owner.bodies == [b"last words"]


async def test_a_close_is_the_end_of_the_stream_and_no_loss(kind: str, folder: Path) -> None:
    async with connected(kind, folder) as (connection, owner, peer):
        connection.close()
        connection.close()
        assert await peer.read(1) == b""
        connection.send([b"after the end"])
        await turns()
        assert owner.losses == []


FAULTS = [
    (b"\x00\x00\x00\xc8\xff\xff\xff\x00" + bytes(8), "load message"),
    (LOADED + encoded_reply(bytes(LIMIT + 1)), "response body"),
    (LOADED + b"\x00\x00\x00\xc8\x00\x00\x00\x00\x7f\xff\xff\xff" + bytes(8), "request id"),
]


@pytest.mark.parametrize(("data", "field"), FAULTS)
async def test_bytes_that_are_no_reply_end_the_connection(
    kind: str, folder: Path, data: bytes, field: str
) -> None:
    async with connected(kind, folder) as (_, owner, peer):
        with contextlib.suppress(ConnectionError):
            await peer.say(data + encoded_reply(b"too late"))
        (reason,) = await wait_until(lambda: owner.losses)
        assert reason.startswith("the worker's reply could not be read: ")
        assert field in reason
        assert owner.replies == []
        with contextlib.suppress(ConnectionError):
            assert await peer.read(1) == b""
        assert len(owner.losses) == 1


async def test_who_closes_at_a_reply_hears_no_other(kind: str, folder: Path) -> None:
    async with connected(kind, folder) as (_, owner, peer):
        owner.closes_at_reply = True
        await peer.say(LOADED + encoded_reply(b"1") + encoded_reply(b"2"))
        await wait_until(lambda: owner.replies)
        await turns()
        assert owner.bodies == [b"1"]
        assert owner.losses == []


async def test_nobody_listens(kind: str, folder: Path) -> None:
    door, address = listen(kind, folder)
    door.close()
    with pytest.raises(ConnectionRefusedError):
        await load_connection(kind)(address, RecordingOwner(), LIMIT)


async def test_no_socket_at_all(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await load_connection("unix")(str(folder / "none"), RecordingOwner(), LIMIT)


async def test_small_requests_leave_at_once_over_tcp(folder: Path) -> None:
    async with connected("tcp", folder) as (connection, _, _):
        assert connection._transport is not None
        raw = connection._transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(KeyError):
        load_connection("carrier pigeon")
