"""Handlers that yield, through the service: what goes out, in which messages, and how it ends."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ts.async_service import predict
from ts.context import RequestCancelled
from ts.generators import StreamError, has_streams, run_to_end
from ts.protocol.controls import CONTROLS_VARIABLE
from ts.protocol.messages import Part, PredictReply, PredictRequest, ReplyReader
from ts.service import Service


class Socket:
    """Keeps the messages that were sent."""

    def __init__(self):
        self.reader = ReplyReader(1 << 20)

    def sendall(self, data):
        self.reader.feed(bytes(data))


class Clients:
    """Which requests nobody waits for: `gone` is a set of ids."""

    def __init__(self):
        self.gone = set()

    def covers(self, request_ids):
        return all(request_id in self.gone for request_id in request_ids)


class Batch:
    """A service around an entry point, and a batch of raw bodies for it."""

    def __init__(self, entry_point, *bodies):
        self.service = Service("m", "/", None, entry_point, None, len(bodies))
        self.socket = Socket()
        self.clients = Clients()
        self.service.set_cl_socket(self.socket)
        self.service.set_cancellations(self.clients)
        self.requests = [
            PredictRequest(f"r{index}".encode(), [], [Part(b"body", b"", body)])
            for index, body in enumerate(bodies)
        ]

    def run(self, is_async=False) -> list[PredictReply]:
        if is_async:
            reply = asyncio.run(predict(self.service, self.requests))
        else:
            reply = self.service.predict(self.requests)
        self.socket.sendall(b"".join(map(bytes, reply)))
        return list(iter(self.socket.reader.next_predict, None))


def shown(replies):
    """Per message, per request: the piece, and whether more of it follows ("+")."""
    return [
        " ".join(
            bytes(item.body).decode() + "+."[(b"ts_stream_next", b"true") not in item.headers]
            for item in reply.predictions
        )
        for reply in replies
    ]


def counting(data, context):
    for number in range(3):
        yield f"{number}"


async def counting_slowly(data, context):
    for number in range(3):
        await asyncio.sleep(0)
        yield f"{number}"


def steps(data, context):
    yield ["a", "b"]
    yield ["c", None]
    yield None
    yield ["d", b"e"]


def one_by_one(text):
    yield from text.decode()


async def one_by_one_slowly(text):
    for letter in text.decode():
        await asyncio.sleep(0)
        yield letter


def each(data, context):
    return [one_by_one(row["body"]) for row in data]


@pytest.fixture(params=["sync", "async"])
def is_async(request):
    return request.param == "async"


@pytest.fixture(autouse=True)
def _loop_of_the_worker():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def _our_frontend(monkeypatch):
    monkeypatch.setenv(CONTROLS_VARIABLE, "1")


@pytest.mark.parametrize("entry_point", [counting, counting_slowly])
def test_a_generator_streams_the_answer_of_one_request(entry_point, is_async):
    replies = Batch(entry_point, b"").run(is_async)
    assert shown(replies) == ["0+", "1+", "2+", "."]
    assert {reply.code for reply in replies} == {200}


def test_a_step_is_a_list_with_an_item_per_request():
    assert shown(Batch(steps, b"", b"").run()) == ["a+ b+", "c+ +", "d+ e+", ". ."]


@pytest.mark.parametrize("letters", [one_by_one, one_by_one_slowly])
def test_each_request_may_have_a_generator_of_its_own(letters, is_async):
    def entry_point(data, context):
        return [letters(row["body"]) for row in data]

    async def entry_point_async(data, context):
        return entry_point(data, context)

    batch = Batch(entry_point_async if is_async else entry_point, b"abc", b"x")
    # The shorter stream ends in the message after its last piece.
    assert shown(batch.run(is_async)) == ["a+ x+", "b+ .", "c+ .", ". ."]


def test_behind_torchserve_all_requests_of_a_batch_end_together(monkeypatch):
    monkeypatch.delenv(CONTROLS_VARIABLE)
    assert shown(Batch(each, b"abc", b"x").run()) == ["a+ x+", "b+ +", "c+ +", ". ."]


def test_plain_answers_may_stand_between_generators():
    def entry_point(data, context):
        return [7, one_by_one(b"ab")]

    assert shown(Batch(entry_point, b"", b"").run()) == ["7. a+", ". b+", ". ."]


def test_what_a_generator_returns_is_the_last_piece():
    def entry_point(data, context):
        yield "a"
        return {"tokens": 1}

    assert shown(Batch(entry_point, b"").run()) == ["a+", '{\n  "tokens": 1\n}.']


def test_a_stream_without_pieces_is_an_empty_answer():
    def entry_point(data, context):
        yield from ()

    assert shown(Batch(entry_point, b"").run()) == ["."]


def test_headers_set_before_the_first_piece_go_with_it():
    def entry_point(data, context):
        context.set_response_content_type(0, "text/event-stream")
        context.set_response_status(202, "Begun")
        yield "a"

    first = Batch(entry_point, b"").run()[0].predictions[0]
    assert (first.content_type, first.status) == (b"text/event-stream", 202)


@pytest.mark.parametrize(
    ("piece", "bodies", "message"),
    [
        (object(), 1, "Unsupported model output data type."),
        (["a"], 2, "yielded 1 items for 2 requests"),
        ("a", 2, "yielded a str for 2 requests"),
    ],
)
def test_a_piece_that_cannot_be_sent_fails_the_batch(piece, bodies, message):
    ended = []

    def entry_point(data, context):
        try:
            yield piece
        finally:
            ended.append(True)

    (reply,) = Batch(entry_point, *[b""] * bodies).run()
    assert (reply.code, reply.message.startswith(message)) == (503, True)
    assert ended == [True]


def test_a_generator_for_a_wrong_number_of_requests_fails_the_batch():
    (reply,) = Batch(lambda data, context: [one_by_one(b"a")], b"", b"").run()
    assert (reply.code, reply.message) == (503, "1 items for 2 requests")


def test_an_exception_fails_the_batch_and_closes_the_other_generators(is_async):
    ended = []

    def fine():
        try:
            yield "a"
            yield "b"
        finally:
            ended.append("fine")

    def broken():
        yield "x"
        raise ValueError("no more")

    def entry_point(data, context):
        return [fine(), broken()]

    async def entry_point_async(data, context):
        return entry_point(data, context)

    batch = Batch(entry_point_async if is_async else entry_point, b"", b"")
    first, last = batch.run(is_async)
    assert shown([first]) == ["a+ x+"]
    assert (last.code, last.message) == (503, "Prediction failed")
    assert ended == ["fine"]


def test_a_generator_that_cannot_be_closed_keeps_no_other_open(is_async):
    ended = []

    async def letters(index):
        try:
            yield "a"
            batch.clients.gone = {"r0", "r1"}
            yield "b"
            yield "c"
        finally:
            ended.append(index)
            raise OSError(f"the file of {index} is gone")

    def entry_point(data, context):
        return [letters(0), letters(1)]

    async def entry_point_async(data, context):
        return entry_point(data, context)

    batch = Batch(entry_point_async if is_async else entry_point, b"", b"")
    assert batch.run(is_async)[-1].code == 503
    assert sorted(ended) == [0, 1]


@pytest.mark.parametrize("is_generator_async", [False, True])
def test_a_stream_ends_with_its_client(is_async, is_generator_async):
    seen = []

    def endless(data, context):
        try:
            for number in range(1000):
                if number == 2:
                    batch.clients.gone = {"r0"}
                yield "."
        except GeneratorExit:
            seen.append("closed")
            raise

    async def endless_slowly(data, context):
        try:
            for number in range(1000):
                if number == 2:
                    batch.clients.gone = {"r0"}
                yield "."
        except GeneratorExit:
            seen.append("closed")
            raise

    batch = Batch(endless_slowly if is_generator_async else endless, b"")
    replies = batch.run(is_async)
    assert len(replies) == 4
    assert replies[-1].message == "Request cancelled"
    assert seen == ["closed"]


def test_only_the_stream_without_a_client_is_closed():
    ended = []

    def letters(name, text):
        try:
            for letter in text:
                if letter == "c":
                    batch.clients.gone = {"r1"}
                yield letter
        finally:
            ended.append(name)

    def entry_point(data, context):
        return [letters("first", "abcde"), letters("second", "x" * 1000)]

    batch = Batch(entry_point, b"", b"")
    assert shown(batch.run()) == ["a+ x+", "b+ x+", "c+ x+", "d+ .", "e+ .", ". ."]
    assert ended == ["second", "first"]


def test_a_cancelled_task_waits_for_the_step_that_a_thread_is_at():
    """A generator that runs cannot be closed; closing it anyway would raise."""
    is_running, may_end = asyncio.Event(), threading.Event()
    ended = []

    async def scenario():
        loop = asyncio.get_running_loop()

        def entry_point(data, context):
            try:
                loop.call_soon_threadsafe(is_running.set)
                assert may_end.wait(10)
                yield "a"
            finally:
                ended.append(True)

        batch = Batch(entry_point, b"")
        task = asyncio.create_task(predict(batch.service, batch.requests))
        await is_running.wait()
        task.cancel()
        loop.call_soon(may_end.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert ended == [True]


def test_the_call_without_data_runs_a_generator_function():
    started = []

    def handle(data, context):
        if data is None:
            started.append(context)
            return
        yield "a"

    run_to_end(handle(None, "context"))
    assert started == ["context"]
    with pytest.raises(StreamError, match="at its start"):
        run_to_end(counting(None, None))


def test_other_ranks_take_the_steps_and_send_nothing(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert shown(Batch(counting, b"").run()) == ["."]


@pytest.mark.parametrize("ret", [["a"], [], ("a",), None, "a", iter("a")])
def test_other_values_are_no_streams(ret):
    assert not has_streams(ret)


def test_a_handler_may_end_its_stream_for_nobody():
    def entry_point(data, context):
        yield "a"
        batch.clients.gone = {"r0"}
        raise RequestCancelled

    batch = Batch(entry_point, b"")
    assert batch.run()[-1].message == "Request cancelled"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("gone", [set(), {"r0"}])
def test_who_waits_is_not_told_of_a_cancelled_request(is_async, gone):
    """A failed batch is what the frontend runs again, for those who wait."""

    def stream(data, context):
        yield None
        raise RequestCancelled

    async def answer_later(data, context):
        raise RequestCancelled

    def answer(data, context):
        raise RequestCancelled

    for entry_point in (stream, answer_later if is_async else answer):
        batch = Batch(entry_point, b"", b"")
        batch.clients.gone = gone
        (reply,) = batch.run(is_async)
        assert (reply.code, reply.message) == (503, "Prediction failed")
        assert [prediction.status for prediction in reply.predictions] == [503, 503]
