"""Commands in order, and what a look at the socket finds while a handler runs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ts.command_source import CommandSource
from ts.protocol.messages import (
    PING,
    Part,
    Ping,
    PredictRequest,
    encode_cancel,
    encode_predict,
)
from ts.transports.connection import FrontendConnection, FrontendDisconnected


class Frontend:
    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw

    def ask(self, *request_ids: bytes) -> None:
        requests = [PredictRequest(i, [], [Part(b"body", b"", b"x")]) for i in request_ids]
        self.raw.sendall(b"".join(encode_predict(requests)))

    def cancel(self, *request_ids: bytes) -> None:
        for request_id in request_ids:
            self.raw.sendall(encode_cancel(request_id))


@pytest.fixture
def both() -> Iterator[tuple[Frontend, CommandSource]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Frontend(ours), CommandSource(FrontendConnection(theirs), look_pause_s=0)


def ids(command: object) -> list[bytes]:
    assert isinstance(command, list)
    return [bytes(request.id) for request in command]


def test_a_request_is_cancelled_while_it_runs(both):
    frontend, source = both
    frontend.ask(b"a", b"b")
    assert ids(source.receive()) == [b"a", b"b"]
    assert not source.covers(["a"])
    frontend.cancel(b"b")
    assert source.covers(["b"])
    assert not source.covers(["a", "b"])
    frontend.cancel(b"a")
    assert source.covers(["a", "b"])


def test_who_asks_all_the_time_looks_now_and_then():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frontend = Frontend(ours)
        source = CommandSource(FrontendConnection(theirs), look_pause_s=0.2)
        frontend.ask(b"a", b"b")
        source.receive()
        assert not source.covers(["a"])
        began_s = time.monotonic()
        frontend.cancel(b"a")
        while not source.covers(["a"]):
            assert time.monotonic() - began_s < 10
        assert time.monotonic() - began_s > 0.1
        frontend.cancel(b"b")
        assert source.covers(["a"])  # what is known needs no look


def test_what_a_look_finds_is_kept_in_its_order(both):
    frontend, source = both
    frontend.ask(b"a")
    source.receive()
    frontend.ask(b"b")
    frontend.raw.sendall(PING)
    frontend.ask(b"c")
    frontend.cancel(b"a")
    assert source.covers(["a"])
    frontend.ask(b"d")
    assert ids(source.receive()) == [b"b"]
    assert source.receive() is Ping.PING
    assert ids(source.receive()) == [b"c"]
    assert ids(source.receive()) == [b"d"]


def test_a_batch_that_was_cancelled_before_it_began_is_abandoned(both):
    frontend, source = both
    frontend.ask(b"a")
    source.receive()
    frontend.ask(b"b", b"c")
    frontend.cancel(b"c")
    source.covers(["a"])
    batch = source.receive()
    assert ids(batch) == [b"b", b"c"]
    assert not source.is_abandoned(batch)
    frontend.cancel(b"b")
    source.covers(["b"])
    assert source.is_abandoned(batch)


def test_cancels_that_cross_the_answer_are_forgotten(both):
    """Else their ids would be kept for ever."""
    frontend, source = both
    for number in range(3):
        name = b"%d" % number
        frontend.ask(name)
        source.receive()
        frontend.cancel(name)
        assert source.covers([name.decode()])
    frontend.cancel(b"0", b"1", b"unheard of")
    source.covers(["1"])
    frontend.ask(b"next")
    source.receive()
    assert source._cancelled == set()
    assert not source.covers(["2"])


def test_nobody_waits_when_the_frontend_has_gone(both):
    frontend, source = both
    frontend.ask(b"a")
    source.receive()
    frontend.raw.close()
    assert source.covers(["a"])
    with pytest.raises(FrontendDisconnected):
        source.receive()


def test_bytes_that_are_no_command_are_told_by_the_next_receive(both):
    frontend, source = both
    frontend.ask(b"a")
    source.receive()
    frontend.raw.sendall(b"?")
    assert source.covers(["a"])
    with pytest.raises(ValueError, match="Invalid command"):
        source.receive()


def test_a_thread_that_a_handler_left_takes_nothing_from_the_next_batch(both):
    """It asks while the worker waits for its next command: the socket is not its own to read."""
    frontend, source = both
    frontend.ask(b"a")
    source.receive()
    received: list[list[bytes]] = []
    waiting = threading.Thread(target=lambda: received.append(ids(source.receive())))
    waiting.start()
    while not source._lock.locked():
        pass
    frontend.ask(b"b")
    source.covers(["a"])
    waiting.join(10)
    assert received == [[b"b"]]


def test_parts_of_a_large_batch_may_be_looked_at(both):
    frontend, source = both
    frontend.ask(b"a")
    source.receive()
    body = bytes(300_000)
    data = b"".join(encode_predict([PredictRequest(b"b", [], [Part(b"body", b"", body)])]))
    for start in range(0, len(data), 50_000):
        frontend.raw.sendall(data[start : start + 50_000])
        assert not source.covers(["a"])
    frontend.cancel(b"a")
    while not source.covers(["a"]):
        pass
    (request,) = source.receive()
    assert bytes(request.parts[0].body) == body
