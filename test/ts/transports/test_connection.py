"""The worker's end of its connection: how it waits."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator

import pytest

from ts.protocol.messages import PredictRequest, encode_predict
from ts.protocol.wakefulness import SPIN_VARIABLE, Wakefulness
from ts.transports.connection import FrontendConnection, FrontendDisconnected

LONG_S = 10.0


class CountingPoll:
    """The poll of the connection, and how often it was asked without waiting."""

    def __init__(self, sock: socket.socket) -> None:
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.looks = 0
        self.sleeps = 0
        self.is_waited_for = threading.Event()

    def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
        if timeout_ms == 0:
            self.looks += 1
        else:
            self.sleeps += 1
        self.is_waited_for.set()
        return self._poll.poll(timeout_ms)


@pytest.fixture
def frontend() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def command(number: int) -> bytes:
    request = PredictRequest(b"%036d" % number, [], [])
    return b"".join(encode_predict([request]))


def awake(longest_s: float) -> Wakefulness:
    wakefulness = Wakefulness(longest_s)
    for _ in range(100):
        wakefulness.waited(0.0)
    assert wakefulness.begin_wait()
    return wakefulness


def receive_while_asked(
    connection: FrontendConnection, poll: CountingPoll, ours: socket.socket, count: int
) -> None:
    """Commands that come only when the connection already waits."""
    for number in range(count):
        poll.is_waited_for.clear()

        def send(number: int = number) -> None:
            assert poll.is_waited_for.wait(10)
            ours.sendall(command(number))

        sender = threading.Thread(target=send)
        sender.start()
        (request,) = connection.receive_command()
        sender.join(10)
        assert request.id == b"%036d" % number


def test_waits_asleep_where_nothing_is_set(frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = frontend
    monkeypatch.delenv(SPIN_VARIABLE, raising=False)
    connection = FrontendConnection(theirs)
    poll = connection._arrival = CountingPoll(theirs)
    receive_while_asked(connection, poll, ours, 3)
    assert (poll.looks, poll.sleeps) == (0, 3)


def test_stays_awake_for_what_comes_soon(frontend) -> None:
    ours, theirs = frontend
    connection = FrontendConnection(theirs, wakefulness=awake(LONG_S))
    poll = connection._arrival = CountingPoll(theirs)
    receive_while_asked(connection, poll, ours, 3)
    assert poll.sleeps == 0
    assert poll.looks >= 3


def test_sleeps_again_after_a_silence(frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = frontend
    wakefulness = awake(1e-6)
    connection = FrontendConnection(theirs, wakefulness=wakefulness)
    poll = connection._arrival = CountingPoll(theirs)
    looked = poll.poll

    def slow_poll(timeout_ms: float | None = None) -> list[tuple[int, int]]:
        if timeout_ms != 0:
            ours.sendall(command(1))
        return looked(timeout_ms)

    monkeypatch.setattr(poll, "poll", slow_poll)
    for sleeps in (1, 2):
        (request,) = connection.receive_command()
        assert request.id == b"%036d" % 1
        assert poll.sleeps == sleeps
    assert not wakefulness.begin_wait()


def test_the_end_is_seen_while_it_waits_awake(frontend) -> None:
    ours, theirs = frontend
    connection = FrontendConnection(theirs, wakefulness=awake(LONG_S))
    ours.close()
    with pytest.raises(FrontendDisconnected):
        connection.receive_command()
