"""What every call passes: the key, the error table, the access log."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from ts_frontend.core.errors import InvalidArgument, ServingError
from ts_frontend.grpc.interceptors import remote
from ts_frontend.grpc.stubs.inference_pb2 import PredictionResponse, PredictionsRequest
from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub

INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
KEY = ("authorization", "Bearer right")
REQUEST = PredictionsRequest(model_name="m", input={"data": b"x"})


def authorize(authorization: bytes | None) -> None:
    if authorization != b"Bearer right":
        raise ServingError("no key, no call")


def method(channel: grpc.aio.Channel, path: str):
    return channel.stream_stream(path, None, None)


async def status_of(call) -> tuple[grpc.StatusCode, str | None]:
    if hasattr(call, "__aiter__"):
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:  # the status comes behind the messages
                pass
    return await call.code(), await call.details()


CALLS = {
    "Ping": lambda channel, **more: InferenceAPIsServiceStub(channel).Ping(Empty(), **more),
    "Predictions": lambda channel, **more: InferenceAPIsServiceStub(channel).Predictions(
        REQUEST, **more
    ),
    "StreamPredictions": lambda channel, **more: InferenceAPIsServiceStub(
        channel
    ).StreamPredictions(REQUEST, **more),
    # A client that never sends anything must hear it too.
    "StreamPredictions2": lambda channel, **more: InferenceAPIsServiceStub(
        channel
    ).StreamPredictions2(**more),
    "reflection": lambda channel, **more: ServerReflectionStub(channel).ServerReflectionInfo(
        iter([ServerReflectionRequest(list_services="")]), **more
    ),
    "unknown method": lambda channel, **more: method(channel, f"/{INFERENCE}/Nope")(**more),
    "unknown service": lambda channel, **more: method(channel, "/a.B/C")(**more),
    "path with more slashes": lambda channel, **more: method(channel, f"//{INFERENCE}/Ping")(
        **more
    ),
    "health by another path": lambda channel, **more: method(
        channel, f"/grpc.health.v1.Health/../{INFERENCE}/Ping"
    )(**more),
}

# A write after the refusal makes the asyncio client report INTERNAL "Internal error from Core" in
# its place (grpc/grpc#36066), so these clients write nothing.
WITHOUT_KEY = CALLS | {
    "reflection": lambda channel, **more: ServerReflectionStub(channel).ServerReflectionInfo(
        **more
    ),
}


@pytest.mark.parametrize("call", WITHOUT_KEY)
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong"),),
        (("authorization", ""),),
        (("authorization-bin", b"Bearer right"),),
        (("x-authorization", "Bearer right"),),
    ],
)
async def test_nothing_works_without_the_key(
    serve, servicer, channel_to, call: str, metadata
) -> None:
    lines: list[tuple] = []
    server = await serve(
        servicer.service(), authorize=authorize, on_finished=lambda *line: lines.append(line)
    )
    code, details = await status_of(WITHOUT_KEY[call](channel_to(server), metadata=metadata))
    assert (code, details) == (grpc.StatusCode.PERMISSION_DENIED, "no key, no call")
    assert servicer.seen == []
    assert lines == []


async def test_the_key_opens(serve, servicer, channel_to) -> None:
    server = await serve(servicer.service(), authorize=authorize)
    channel = channel_to(server)
    for name in ("Ping", "Predictions", "StreamPredictions", "reflection"):
        code, details = await status_of(CALLS[name](channel, metadata=(KEY,)))
        assert code is grpc.StatusCode.OK, details
    code, _ = await status_of(CALLS["unknown method"](channel, metadata=(KEY,)))
    assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_health_needs_no_key(serve, servicer, channel_to) -> None:
    server = await serve(servicer.service(), authorize=authorize)
    await HealthStub(channel_to(server)).Check(HealthCheckRequest())


async def test_the_services_table_translates_errors(serve, servicer, channel_to) -> None:
    async def refuse(context) -> None:
        raise InvalidArgument("not like this")

    servicer.ping = servicer.stream = refuse
    channel = channel_to(await serve(servicer.service()))
    for name in ("Ping", "StreamPredictions"):
        assert await status_of(CALLS[name](channel)) == (
            grpc.StatusCode.ABORTED,
            "told: not like this",
        )


@pytest.mark.parametrize("character", ["x", "\n", "\U0001f600"])
async def test_a_text_that_quotes_too_much_is_shortened(
    serve, servicer, channel_to, character: str
) -> None:
    async def refuse(context) -> None:
        raise InvalidArgument(f"start {character * 100_000} end")

    servicer.ping = refuse
    code, details = await status_of(CALLS["Ping"](channel_to(await serve(servicer.service()))))
    assert code is grpc.StatusCode.ABORTED
    assert details.startswith("told: start ")
    assert details.endswith(" end")
    assert len(details) < 1000


async def test_our_own_bug_stays_in_the_log(serve, servicer, channel_to, caplog) -> None:
    async def stumble(context) -> None:
        raise KeyError("/secret/path")

    servicer.ping = stumble
    channel = channel_to(await serve(servicer.service()))
    with caplog.at_level(logging.ERROR):
        code, details = await status_of(CALLS["Ping"](channel))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in (details or "")
    assert "/secret/path" in caplog.text


NO_MESSAGES = {
    "invalid UTF-8": b"\x0a\x02\xff\xfe",
    "cut short": b"\x0a\x20a",
    "groups without an end": b"\x0b" * 10_000,
}


@pytest.mark.parametrize("body", NO_MESSAGES.values(), ids=NO_MESSAGES)
@pytest.mark.parametrize("name", ["Predictions", "StreamPredictions", "StreamPredictions2"])
async def test_bytes_that_are_no_message_are_the_clients_fault(
    serve, servicer, channel_to, caplog, name: str, body: bytes
) -> None:
    """The library alone says UNKNOWN, names Python's classes, and logs a traceback for each."""
    ended: asyncio.Queue[int] = asyncio.Queue()
    server = await serve(
        servicer.service(), on_finished=lambda _, method, code, seconds: ended.put_nowait(code)
    )
    channel = channel_to(server)
    code, text = await status_of(method(channel, f"/{INFERENCE}/{name}")(iter([body])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == "The request is no message of the kind that this call takes."
    assert servicer.seen in ([], ["StreamPredictions2"])
    assert await asyncio.wait_for(ended.get(), 10) == code.value[0]  # the client hears it first
    assert ended.empty()
    assert caplog.records == []
    answer = await InferenceAPIsServiceStub(channel).Predictions(REQUEST)
    assert answer.prediction == b"x"


async def test_a_stream_ends_at_bytes_that_are_no_message(serve, servicer, channel_to) -> None:
    channel = channel_to(await serve(servicer.service()))
    call = method(channel, f"/{INFERENCE}/StreamPredictions2")(
        iter([REQUEST.SerializeToString(), b"\x0a\x20a"])
    )
    answer = await call.read()
    assert PredictionResponse.FromString(answer).prediction == b"x"
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_each_finished_call_is_told_once(serve, servicer, channel_to) -> None:
    lines: asyncio.Queue = asyncio.Queue()
    server = await serve(servicer.service(), on_finished=lambda *line: lines.put_nowait(line))
    channel = channel_to(server)

    async def next_line() -> tuple[str, str, int]:
        peer, method, status, seconds = await lines.get()
        assert 0 <= seconds < 60
        return peer.rpartition(":")[0], method, status

    await CALLS["Ping"](channel)
    assert await next_line() == ("/127.0.0.1", f"{INFERENCE}/Ping", 0)

    async def abort(context) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone")

    async def refuse(context) -> None:
        raise InvalidArgument("no")

    for ending, status in ((abort, 5), (refuse, 10)):
        servicer.stream = ending
        await status_of(CALLS["StreamPredictions"](channel))
        assert await next_line() == ("/127.0.0.1", f"{INFERENCE}/StreamPredictions", status)
    assert lines.empty()


@pytest.mark.parametrize(("way", "status"), [("cancel", 1), ("deadline", 4)])
async def test_a_client_that_leaves_ends_the_servicers_frame(
    serve, servicer, channel_to, way: str, status: int
) -> None:
    lines: asyncio.Queue = asyncio.Queue()
    server = await serve(servicer.service(), on_finished=lambda *line: lines.put_nowait(line))
    entered, ended = asyncio.Event(), asyncio.Event()

    async def wait(context) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    servicer.stream = wait
    call = CALLS["StreamPredictions"](
        channel_to(server), timeout=0.2 if way == "deadline" else None
    )
    await entered.wait()
    if way == "cancel":
        call.cancel()
    await ended.wait()
    assert (await lines.get())[2] == status


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        ("ipv4:127.0.0.1:64003", "/127.0.0.1:64003"),
        ("ipv6:%5B::1%5D:64003", "/[::1]:64003"),
        ("ipv6:[::1]:1", "/[::1]:1"),
        ("unix:", "unix"),
        ("", "unknown"),
    ],
)
def test_the_client_is_shown_as_in_http_lines(peer: str, shown: str) -> None:
    assert remote(peer) == shown
