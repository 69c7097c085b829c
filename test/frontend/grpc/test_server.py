"""Ports, limits, TLS, stopping, health and reflection."""

from __future__ import annotations

import asyncio
import gzip
import os
from pathlib import Path

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from ts_frontend.grpc.server import BindFailed, GrpcLimits, GrpcServer, TlsFiles
from ts_frontend.grpc.stubs.inference_pb2 import PredictionsRequest
from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub
from ts_frontend.settings import ConfigurationError

INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


def predictions(body: bytes) -> PredictionsRequest:
    return PredictionsRequest(model_name="m", input={"data": body})


async def code_of(call) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code()


async def test_port_0_becomes_a_free_port(serve, servicer, channel_to) -> None:
    first, second = await serve(servicer.service()), await serve(servicer.service())
    assert first.port not in (0, second.port)
    assert first.address == f"127.0.0.1:{first.port}"
    for server in (first, second):
        stub = InferenceAPIsServiceStub(channel_to(server))
        assert (await stub.Ping(Empty())).health == "fine"


async def test_an_ipv6_host_is_put_in_brackets() -> None:
    assert GrpcServer("::1", 7070, []).address == "[::1]:7070"


async def test_a_taken_port_is_refused(serve, servicer) -> None:
    server = await serve(servicer.service())
    with pytest.raises(BindFailed, match=server.address):
        await serve(servicer.service(), port=server.port)


async def test_a_message_over_the_limit_is_refused_and_the_channel_lives_on(
    serve, servicer, channel_to
) -> None:
    server = await serve(servicer.service(), limits=GrpcLimits(max_message_bytes=1000))
    stub = InferenceAPIsServiceStub(channel_to(server))
    code = await code_of(stub.Predictions(predictions(b"x" * 1000)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert servicer.seen == []
    assert (await stub.Predictions(predictions(b"x" * 900))).prediction == b"x" * 900


async def test_the_limit_counts_the_unpacked_bytes_of_a_compressed_message(
    serve, servicer, channel_to
) -> None:
    """A small message that stands for a huge one must not unpack."""
    server = await serve(servicer.service(), limits=GrpcLimits(max_message_bytes=1_000_000))
    stub = InferenceAPIsServiceStub(channel_to(server))
    bomb = predictions(bytes(300 * 1024 * 1024))
    assert len(gzip.compress(bomb.SerializeToString())) < 1_000_000
    code = await code_of(stub.Predictions(bomb, compression=grpc.Compression.Gzip))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert servicer.seen == []


async def test_answers_are_not_limited(serve, servicer, channel_to) -> None:
    server = await serve(servicer.service(), limits=GrpcLimits(max_message_bytes=8 * 2**20))
    options = [("grpc.max_receive_message_length", -1)]
    stub = InferenceAPIsServiceStub(channel_to(server, options=options))
    body = bytes(7 * 2**20)
    assert (await stub.Predictions(predictions(body))).prediction == body


async def test_more_calls_than_allowed_are_refused(serve, servicer, channel_to) -> None:
    server = await serve(servicer.service(), limits=GrpcLimits(max_calls=1))
    stub = InferenceAPIsServiceStub(channel_to(server))
    gate, entered = asyncio.Event(), asyncio.Event()

    async def wait(context) -> None:
        entered.set()
        await gate.wait()

    servicer.ping = wait
    running = asyncio.ensure_future(stub.Ping(Empty()))
    await entered.wait()
    assert await code_of(stub.Ping(Empty())) is grpc.StatusCode.RESOURCE_EXHAUSTED
    gate.set()
    assert (await running).health == "fine"


async def test_connections_have_an_age(serve, servicer, channel_to) -> None:
    limits = GrpcLimits(max_connection_age_ms=50, max_connection_age_grace_ms=0)
    server = await serve(servicer.service(), limits=limits)
    stub = InferenceAPIsServiceStub(channel_to(server))

    async def wait(context) -> None:
        await asyncio.Event().wait()

    servicer.ping = wait
    assert await code_of(stub.Ping(Empty())) is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def trust(pem) -> bytes:
    return Path(pem[0]).read_bytes()


async def test_tls(serve, servicer, pem, trust) -> None:
    certificate, key = pem
    server = await serve(servicer.service(), tls=TlsFiles(certificate, key))
    credentials = grpc.ssl_channel_credentials(trust)
    async with grpc.aio.secure_channel(server.address, credentials) as channel:
        assert (await InferenceAPIsServiceStub(channel).Ping(Empty())).health == "fine"
    async with grpc.aio.insecure_channel(server.address) as channel:
        code = await code_of(InferenceAPIsServiceStub(channel).Ping(Empty(), timeout=10))
        # grpc itself refuses: the connection if the port is closed already, else the call.
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@pytest.mark.parametrize("broken", ["missing", "empty", "swapped"])
async def test_unusable_pem_files_are_named(serve, servicer, pem, broken: str) -> None:
    certificate, key = pem
    if broken == "missing":
        certificate = certificate + "x"
    elif broken == "empty":
        certificate = os.devnull
    else:
        certificate, key = key, certificate
    with pytest.raises(ConfigurationError, match=certificate):
        await serve(servicer.service(), tls=TlsFiles(certificate, key))


async def test_stop_lets_a_running_call_finish_and_takes_no_new_one(
    serve, servicer, channel_to
) -> None:
    server = await serve(servicer.service())
    stub = InferenceAPIsServiceStub(channel_to(server))
    gate, entered = asyncio.Event(), asyncio.Event()

    async def wait(context) -> None:
        entered.set()
        await gate.wait()

    servicer.ping = wait
    running = asyncio.ensure_future(stub.Ping(Empty()))
    await entered.wait()
    stopping = asyncio.ensure_future(server.stop(30))
    servicer.ping = None
    async with grpc.aio.insecure_channel(server.address) as late:
        code = await code_of(InferenceAPIsServiceStub(late).Ping(Empty()))
    # Refused at the port, or behind it where the port was not closed yet.
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert servicer.seen == ["Ping"]
    assert not stopping.done()
    gate.set()
    assert (await running).health == "fine"
    await stopping


async def test_stop_cancels_what_outlives_the_grace(serve, servicer, channel_to) -> None:
    server = await serve(servicer.service())
    stub = InferenceAPIsServiceStub(channel_to(server))
    entered, ended = asyncio.Event(), asyncio.Event()

    async def wait(context) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    servicer.ping = wait
    running = asyncio.ensure_future(stub.Ping(Empty()))
    await entered.wait()
    await server.stop(0.05)
    assert await code_of(running) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    await ended.wait()
    await server.stop(0)  # a second time changes nothing


@pytest.mark.parametrize("kind", ["predictions", "reflection"])
async def test_stop_does_not_wait_for_a_client_that_says_nothing(
    serve, servicer, channel_to, kind: str
) -> None:
    server = await serve(servicer.service())
    channel = channel_to(server)
    if kind == "predictions":
        call = InferenceAPIsServiceStub(channel).StreamPredictions2()
        await call.write(predictions(b"1"))
    else:
        call = ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(ServerReflectionRequest(list_services=""))
    assert await call.read() is not grpc.aio.EOF
    async with asyncio.timeout(5):
        await server.stop(60)
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert await call.details() == "The server is stopping."


async def test_stop_lets_the_answer_to_a_message_of_a_stream_out(
    serve, servicer, channel_to
) -> None:
    server = await serve(servicer.service())
    call = InferenceAPIsServiceStub(channel_to(server)).StreamPredictions2()
    gate, entered = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        entered.set()
        await gate.wait()

    servicer.before_answer = wait
    await call.write(predictions(b"1"))
    await entered.wait()
    stopping = asyncio.ensure_future(server.stop(60))
    await asyncio.wait([stopping], timeout=0.05)
    assert not stopping.done()
    gate.set()
    assert (await call.read()).prediction == b"1"
    async with asyncio.timeout(5):
        await stopping
    assert await call.code() is grpc.StatusCode.UNAVAILABLE


# Health.


async def test_health_follows_the_server(serve, servicer, channel_to) -> None:
    is_healthy = True
    server = await serve(servicer.service(), is_healthy=lambda: is_healthy)
    stub = HealthStub(channel_to(server))
    for service in ("", INFERENCE):
        assert (await stub.Check(HealthCheckRequest(service=service))).status == SERVING
    is_healthy = False
    assert (await stub.Check(HealthCheckRequest())).status == NOT_SERVING
    unknown = stub.Check(HealthCheckRequest(service="nobody"))
    assert await code_of(unknown) is grpc.StatusCode.NOT_FOUND


async def test_a_watch_hears_of_changes_and_of_the_end(
    serve, servicer, channel_to, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ts_frontend.grpc.health.WATCH_INTERVAL_S", 0.01)
    is_healthy = True
    server = await serve(servicer.service(), is_healthy=lambda: is_healthy)
    stub = HealthStub(channel_to(server))
    watch = stub.Watch(HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    is_healthy = False
    assert (await watch.read()).status == NOT_SERVING
    is_healthy = True
    assert (await watch.read()).status == SERVING
    stopping = asyncio.ensure_future(server.stop(30))
    assert (await watch.read()).status == NOT_SERVING
    assert await watch.read() is grpc.aio.EOF
    await stopping


async def test_a_watch_of_a_stranger_says_so(serve, servicer, channel_to) -> None:
    server = await serve(servicer.service())
    watch = HealthStub(channel_to(server)).Watch(HealthCheckRequest(service="nobody"))
    assert (await watch.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_health_lists_its_services(serve, servicer, channel_to) -> None:
    health_pb2 = pytest.importorskip("grpc_health.v1.health_pb2")
    if not hasattr(health_pb2, "HealthListRequest"):
        pytest.skip("this version of the protocol has no List")
    server = await serve(servicer.service())
    answer = await HealthStub(channel_to(server)).List(health_pb2.HealthListRequest())
    assert {name: status.status for name, status in answer.statuses.items()} == {
        "": SERVING,
        INFERENCE: SERVING,
    }


# Reflection.


async def test_reflection_names_services_and_their_files(serve, servicer, channel_to) -> None:
    server = await serve(servicer.service())
    stub = ServerReflectionStub(channel_to(server))
    asked = [
        ServerReflectionRequest(list_services=""),
        ServerReflectionRequest(file_containing_symbol=INFERENCE),
    ]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names == {
        INFERENCE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    files = answers[1].file_descriptor_response.file_descriptor_proto
    assert any(b"PredictionsRequest" in file for file in files)
