"""Each event reaches the reader once and in order, whichever side comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fakes import RecordingConsumer, chunk, turns
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.core import response_stream
from ts_frontend.core.errors import ErrorKind, RequestCancelled, ServingError, WorkerDied
from ts_frontend.core.inference import ResponseChunk
from ts_frontend.core.response_stream import ResponseStream


def push_all(stream: ResponseStream, *bodies: bytes) -> None:
    """A complete answer."""
    for body in bodies[:-1]:
        stream.push(chunk(body, is_last=False))
    stream.push(chunk(bodies[-1]))


async def read(stream: ResponseStream, into: list[bytes]) -> None:
    async for piece in stream:
        into.append(bytes(piece.body))


# The attached reader.


def test_an_attached_client_is_told_in_the_producers_turn() -> None:
    stream = ResponseStream()
    client = RecordingConsumer(stream)
    stream.push(chunk(b"1", is_last=False))
    assert client.bodies == [b"1"]
    stream.push(chunk(b"2"))
    assert client.bodies == [b"1", b"2"]


def test_what_came_before_the_client_is_kept() -> None:
    stream = ResponseStream()
    stream.push(chunk(b"1", is_last=False))
    stream.push(chunk(b"2", is_last=False))
    client = RecordingConsumer(stream)
    stream.push(chunk(b"3"))
    assert client.bodies == [b"1", b"2", b"3"]


def test_a_failure_before_the_client_is_kept_after_its_chunks() -> None:
    stream = ResponseStream()
    stream.push(chunk(b"1", is_last=False))
    stream.fail(WorkerDied())
    client = RecordingConsumer(stream)
    assert client.bodies == [b"1"]
    assert isinstance(client.error, WorkerDied)


def test_a_client_that_leaves_while_it_catches_up_gets_nothing_more() -> None:
    stream = ResponseStream()
    stream.push(chunk(b"1", is_last=False))
    stream.push(chunk(b"2", is_last=False))

    class Leaves(RecordingConsumer):
        def on_chunk(self, chunk: ResponseChunk) -> None:
            super().on_chunk(chunk)
            stream.cancel()

    client = Leaves(stream)
    stream.push(chunk(b"3"))
    assert client.bodies == [b"1"]
    assert client.errors == []


def test_a_producer_that_goes_on_while_the_client_catches_up_keeps_the_order() -> None:
    stream = ResponseStream()
    stream.push(chunk(b"1", is_last=False))

    class Asks(RecordingConsumer):
        def on_chunk(self, chunk_: ResponseChunk) -> None:
            super().on_chunk(chunk_)
            if len(self.chunks) < 3:
                stream.push(chunk(str(len(self.chunks) + 1).encode(), is_last=False))

    assert Asks(stream).bodies == [b"1", b"2", b"3"]


# The iterating reader.


async def test_iteration_waits_for_each_chunk() -> None:
    stream = ResponseStream()
    bodies: list[bytes] = []
    reader = asyncio.create_task(read(stream, bodies))
    await turns()
    assert bodies == []
    stream.push(chunk(b"1", is_last=False))
    await turns()
    assert bodies == [b"1"]
    stream.push(chunk(b"2"))
    await reader
    assert bodies == [b"1", b"2"]


async def test_iteration_raises_the_failure_after_the_chunks() -> None:
    stream = ResponseStream()
    stream.push(chunk(b"1", is_last=False))
    bodies: list[bytes] = []
    reader = asyncio.create_task(read(stream, bodies))
    await turns()
    error = WorkerDied()
    stream.fail(error)
    with pytest.raises(WorkerDied) as caught:
        await reader
    assert caught.value is error
    assert bodies == [b"1"]


async def test_a_cancel_ends_an_iteration() -> None:
    stream = ResponseStream()
    stream.push(chunk(b"unread", is_last=False))
    stream.cancel()
    bodies: list[bytes] = []
    with pytest.raises(RequestCancelled):
        await read(stream, bodies)
    assert bodies == []


async def test_a_cancel_ends_a_waiting_iteration() -> None:
    stream = ResponseStream()
    reader = asyncio.create_task(read(stream, []))
    await turns()
    stream.cancel()
    with pytest.raises(RequestCancelled):
        await reader


async def test_an_iteration_of_a_stream_that_was_read_ends() -> None:
    stream = ResponseStream()
    push_all(stream, b"1", b"2")
    bodies: list[bytes] = []
    await read(stream, bodies)
    await asyncio.wait_for(read(stream, bodies), 1)
    assert bodies == [b"1", b"2"]


async def test_leaving_an_iteration_early_does_not_cancel() -> None:
    stream = ResponseStream()
    stream.push(chunk(b"1", is_last=False))
    async for _ in stream:
        break
    assert not stream.is_ended


async def test_wait_complete_gives_the_whole_answer() -> None:
    stream = ResponseStream()
    waiter = asyncio.create_task(stream.wait_complete())
    await turns()
    push_all(stream, b"1", b"2")
    assert [piece.body for piece in await waiter] == [b"1", b"2"]
    assert stream.error is None


async def test_a_cancelled_waiter_cancels_the_job() -> None:
    stream = ResponseStream()
    cancels: list[str] = []
    stream.on_cancel = lambda: cancels.append("cancel")
    waiter = asyncio.create_task(stream.wait_complete())
    await turns()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert cancels == ["cancel"]


# Ends.


def test_the_owner_hears_of_a_cancel_once() -> None:
    stream = ResponseStream()
    cancels: list[str] = []
    stream.on_cancel = lambda: cancels.append("cancel")
    stream.cancel()
    stream.cancel()
    assert cancels == ["cancel"]
    assert isinstance(stream.error, RequestCancelled)


@pytest.mark.parametrize(
    "end", [lambda stream: push_all(stream, b""), lambda s: s.fail(WorkerDied())]
)
def test_a_cancel_after_the_end_is_nothing(end: Callable[[ResponseStream], None]) -> None:
    stream = ResponseStream()
    stream.on_cancel = lambda: pytest.fail("cancelled after its end")
    end(stream)
    error = stream.error
    stream.cancel()
    assert stream.error is error


def test_a_slow_client_costs_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_stream, "MAX_BUFFERED_BYTES", 100)
    stream = ResponseStream()
    cancels: list[str] = []
    stream.on_cancel = lambda: cancels.append("cancel")
    for _ in range(50):
        stream.push(chunk(bytes(30), is_last=False))
    assert cancels == ["cancel"]
    client = RecordingConsumer(stream)
    assert len(client.chunks) == 4
    assert client.error.kind is ErrorKind.CANCELLED


async def test_what_was_read_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_stream, "MAX_BUFFERED_BYTES", 100)
    stream = ResponseStream()
    bodies: list[bytes] = []
    reader = asyncio.create_task(read(stream, bodies))
    for _ in range(50):
        stream.push(chunk(bytes(30), is_last=False))
        await turns()
    push_all(stream, b"")
    await reader
    assert len(bodies) == 51


def test_a_large_plain_answer_is_no_slow_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_stream, "MAX_BUFFERED_BYTES", 100)
    stream = ResponseStream()
    stream.push(chunk(bytes(500)))
    assert stream.error is None
    assert len(RecordingConsumer(stream).bodies[0]) == 500


# Any order of events: the reader has what a list of events up to the first end has.

STEPS = st.sampled_from(["push", "last", "fail", "cancel", "attach"])


@given(st.lists(STEPS, max_size=20))
def test_any_interleaving_delivers_each_event_once(steps: list[str]) -> None:
    stream = ResponseStream()
    client = RecordingConsumer()
    cancels: list[str] = []
    stream.on_cancel = lambda: cancels.append("cancel")
    is_attached = False
    expected: list[bytes] = []
    end = ""
    for number, step in enumerate(steps):
        body = str(number).encode()
        if step == "attach":
            if is_attached:
                continue  # one consumer
            is_attached = True
            stream.attach(client)
        elif step in ("push", "last"):
            stream.push(chunk(body, is_last=step == "last"))
        elif step == "fail":
            stream.fail(ServingError(body.decode()))
        else:
            stream.cancel()
        if not end and step != "attach":
            if step in ("push", "last"):
                expected.append(body)
            if step == "cancel" and not is_attached:
                expected.clear()  # nobody wants what was not read
            end = "" if step == "push" else step
            was_attached = is_attached
    if not is_attached:
        stream.attach(client)
    assert client.bodies == expected
    # Who cancels while attached knows it; who attaches to a cancelled stream is told.
    wants_error = end == "fail" or (end == "cancel" and not was_attached)
    assert len(client.errors) == int(wants_error)
    assert stream.is_ended is bool(end)
    assert len(cancels) == int(end == "cancel")


@given(st.lists(st.sampled_from(["push", "last", "fail", "cancel", "turn"]), max_size=20))
def test_any_interleaving_iterates_each_chunk_once(steps: list[str]) -> None:
    async def scenario() -> None:
        stream = ResponseStream()
        bodies: list[bytes] = []
        reader = asyncio.create_task(read(stream, bodies))
        sent: list[bytes] = []
        end = ""
        for number, step in enumerate([*steps, "last"]):
            body = str(number).encode()
            if step == "turn":
                await turns(3)
            elif step in ("push", "last"):
                stream.push(chunk(body, is_last=step == "last"))
            elif step == "fail":
                stream.fail(ServingError("fail"))
            else:
                stream.cancel()
            if not end and step != "turn":
                sent += [body] if step in ("push", "last") else []
                end = "" if step == "push" else step
        (outcome,) = await asyncio.gather(reader, return_exceptions=True)
        if end == "last":
            assert outcome is None
            assert bodies == sent
        elif end == "fail":
            assert isinstance(outcome, ServingError)
            assert bodies == sent
        else:
            assert isinstance(outcome, RequestCancelled)
            assert bodies == sent[: len(bodies)]

    asyncio.run(scenario())
