"""A worker behind a frontend of ours: it stops what nobody waits for, and answers pings.

Behind TorchServe's it shows nothing of all that.
"""

from __future__ import annotations

import pytest

from ts.context import Context, RequestCancelled
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.protocol.controls import CONTROLS_VARIABLE, has_controls, mark_controls
from ts.protocol.messages import (
    PING,
    LoadReply,
    PredictReply,
    encode_cancel,
    encode_predict,
    is_pong,
)

OURS = {CONTROLS_VARIABLE: "1"}

SYNC = """
import time
from ts.context import RequestCancelled
from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return None
    bodies = [bytes(row["body"]).decode() for row in data]
    print("begun", *bodies, flush=True)
    word = bodies[0]
    end_s = time.monotonic() + 20
    while word in ("wait", "raise", "stream") and time.monotonic() < end_s:
        if word == "stream":
            send_intermediate_predict_response(
                ["part"] * len(data), context.request_ids, "Intermediate", 200, context
            )
        elif context.is_cancelled():
            if word == "raise":
                raise RequestCancelled("nobody waits")
            break
        time.sleep(0.005)
    return [f"{context.is_cancelled(index)}" for index in range(len(data))]
"""

ASYNC = """
import asyncio


class Handler:
    def initialize(self, context):
        self.gate = asyncio.Event()

    async def handle(self, data, context):
        word = bytes(data[0]["body"]).decode()
        if word == "stubborn":
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                return [str(context.is_cancelled())]
        if word == "wait":
            print("begun", flush=True)
            await asyncio.sleep(20)
        return [word]
"""


def ours(start_worker, folder, *flags):
    worker = start_worker(folder, *flags, environment=OURS)
    assert has_controls(worker.load("handler.py", batch_size=8).message)
    return worker


def cancel(worker, *request_ids: str) -> None:
    for request_id in request_ids:
        worker.socket.sendall(encode_cancel(request_id.encode()))


def test_a_worker_says_so_only_if_it_was_asked(start_worker, write_handler):
    folder = write_handler(SYNC)
    assert start_worker(folder).load("handler.py") == LoadReply(200, "loaded model m")
    worker = start_worker(folder, environment=OURS)
    assert worker.load("handler.py") == LoadReply(200, mark_controls("loaded model m"))


def test_a_rank_of_many_does_not_say_so(start_worker, write_handler):
    worker = start_worker(
        write_handler(SYNC), environment={**OURS, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    )
    assert worker.load("handler.py") == LoadReply(200, "loaded model m")


def test_a_refused_load_is_told_as_ever(start_worker, models):
    worker = start_worker(models, environment=OURS)
    assert worker.load("fails_on_load.py") == LoadReply(500, "Unknown exception")


@pytest.mark.parametrize("flags", [(), ("--async",)])
def test_a_ping_is_answered_between_batches(start_worker, write_handler, worker_api, flags):
    worker = ours(start_worker, write_handler(ASYNC if flags else SYNC), *flags)
    for _ in range(3):
        worker.socket.sendall(PING)
        assert is_pong(worker.reply())
        assert worker.ask(b"go").code == 200
    assert worker.close() == 0


def test_a_synchronous_handler_may_ask(start_worker, write_handler, worker_api):
    worker = ours(start_worker, write_handler(SYNC))
    worker.send(worker_api.request("a", b"wait"), worker_api.request("b", b"x"))
    worker.out.wait("begun wait x")
    cancel(worker, "b")
    worker.socket.sendall(PING)
    worker.send(worker_api.request("c", b"next"))
    cancel(worker, "a")
    assert worker_api.bodies(worker.reply()) == [b"True", b"True"]
    assert is_pong(worker.reply())
    assert worker_api.bodies(worker.reply()) == [b"False"]


def test_a_handler_that_gives_up_is_no_failure(start_worker, write_handler, worker_api):
    worker = ours(start_worker, write_handler(SYNC))
    worker.send(worker_api.request("a", b"raise"))
    worker.out.wait("begun raise")
    cancel(worker, "a")
    assert (worker.reply().code, worker.ask(b"x").code) == (499, 200)
    assert worker.close() == 0
    lines = worker.out.all()
    assert "Stopped, as nobody waits for it: request a." in lines
    assert not any("Traceback" in line for line in lines)


def test_a_stream_ends_at_its_next_part(start_worker, write_handler, worker_api):
    worker = ours(start_worker, write_handler(SYNC))
    worker.send(worker_api.request("a", b"stream"), worker_api.request("b", b""))
    assert worker_api.bodies(worker.reply()) == [b"part", b"part"]
    cancel(worker, "a")
    for _ in range(5):
        assert worker.reply().code == 200  # the other one is still read
    cancel(worker, "b")
    while (reply := worker.reply()).code == 200:
        pass
    assert reply.code == 499
    assert worker.ask(b"x").code == 200


def test_serve_2814_a_batch_that_was_cancelled_in_time_never_runs(
    start_worker, write_handler, worker_api
):
    worker = ours(start_worker, write_handler(SYNC))
    worker.send(worker_api.request("a", b"wait"))
    worker.out.wait("begun wait")
    worker.send(worker_api.request("b", b"never"))
    cancel(worker, "b", "a")
    assert (worker.reply().code, worker.reply().code) == (200, 499)
    assert worker.close() == 0
    assert "begun never" not in worker.out.all()


def test_a_cancel_that_crosses_the_answer_is_harmless(start_worker, write_handler, worker_api):
    worker = ours(start_worker, write_handler(SYNC))
    for _ in range(3):
        assert worker_api.bodies(worker.ask(b"x")) == [b"False"]
        cancel(worker, "r0", "unheard of")
    assert worker.close() == 0


def test_an_asynchronous_handler_is_interrupted(start_worker, write_handler, worker_api):
    worker = ours(start_worker, write_handler(ASYNC), "--async")
    for name in ("a", "b"):
        worker.send(worker_api.request(name, b"wait"))
    worker.out.wait("begun")
    cancel(worker, "b")
    reply = worker.reply()
    assert (reply.code, [bytes(p.id) for p in reply.predictions]) == (499, [b"b"])
    assert worker_api.bodies(worker.ask(b"beside")) == [b"beside"]
    cancel(worker, "a")
    assert worker.reply().code == 499
    assert worker.close() == 0
    assert not any("Traceback" in line for line in worker.out.all())


def test_an_asynchronous_handler_may_be_cancelled_before_it_begins(
    start_worker, write_handler, worker_api
):
    """Its answer is what frees its place in the frontend's books."""
    worker = ours(start_worker, write_handler(ASYNC), "--async")
    together = b"".join(encode_predict([worker_api.request("a", b"wait")])) + encode_cancel(b"a")
    worker.socket.sendall(together)
    reply = worker.reply()
    assert (reply.code, [bytes(p.id) for p in reply.predictions]) == (499, [b"a"])


def test_an_asynchronous_handler_may_finish_all_the_same(start_worker, write_handler, worker_api):
    worker = ours(start_worker, write_handler(ASYNC), "--async")
    worker.send(worker_api.request("a", b"stubborn"))
    worker.ask(b"x")
    cancel(worker, "a")
    assert worker_api.bodies(worker.reply()) == [b"True"]


def test_all_of_a_message_must_be_cancelled(start_worker, write_handler, worker_api):
    worker = ours(start_worker, write_handler(ASYNC), "--async")
    worker.send(worker_api.request("a", b"stubborn"), worker_api.request("b"))
    worker.ask(b"x")
    cancel(worker, "a")
    assert worker_api.bodies(worker.ask(b"y")) == [b"y"]
    cancel(worker, "b")
    # A wrong number of answers, which nobody reads.
    assert isinstance(worker.reply(), PredictReply)


class Covers:
    def __init__(self, *request_ids: str) -> None:
        self.request_ids = request_ids

    def covers(self, request_ids) -> bool:
        return all(request_id in self.request_ids for request_id in request_ids)


def context_of(*request_ids: str) -> Context:
    context = Context("m", ".", None, 2, None, "1")
    context.request_ids = dict(enumerate(request_ids))
    return context


def test_a_context_without_a_frontend_of_ours_is_never_cancelled():
    assert not context_of("a").is_cancelled()
    assert not context_of("a").is_cancelled(0)


def test_a_context_asks_for_one_or_for_all():
    context = context_of("a", "b")
    context._cancellations = Covers("a")
    assert (context.is_cancelled(0), context.is_cancelled(1)) == (True, False)
    assert not context.is_cancelled()
    context._cancellations = Covers("a", "b")
    assert context.is_cancelled()
    message = context.copy_for_message()
    assert message._cancellations is context._cancellations
    assert not message.is_cancelled()  # it has no requests yet


def test_a_part_for_nobody_is_not_sent():
    context = context_of("a")
    context._cancellations = Covers("a")
    with pytest.raises(RequestCancelled):
        send_intermediate_predict_response(["x"], {0: "a"}, "Intermediate", 200, context)
