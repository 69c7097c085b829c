"""Messages that no careful client would send: every answer is one of the protocol's, in time.

Bounded here; `--hypothesis-profile=long` makes thousands of each kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parents[2]))  # fake_planes.py

from fake_planes import FakePlanes, answers

from ts.protocol.tensors import ELEMENTS, ENVELOPE
from ts_frontend.dialects.open_inference import OpenInferenceDialect
from ts_frontend.dialects.torchserve import TorchServeDialect
from ts_frontend.grpc.server import GrpcLimits, GrpcServer
from ts_frontend.grpc.stubs import inference_pb2 as inference
from ts_frontend.grpc.stubs import management_pb2 as management
from ts_frontend.grpc.stubs import open_inference_pb2 as oip

MAX_MESSAGE_BYTES = 100_000
TIMEOUT_S = 20  # of one call; what takes longer hangs

SERVICES = {
    inference: "org.pytorch.serve.grpc.inference.InferenceAPIsService",
    management: "org.pytorch.serve.grpc.management.ManagementAPIsService",
    oip: "inference.GRPCInferenceService",
}
# What a client may see for a message of its own; nothing of it is a fault of the server.
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNKNOWN,  # TorchServe's, for a conflict
}
FAULT = "Internal server error"

names = st.sampled_from(["m", "raw", "nobody", "", "../m", "é\0"]) | st.text(max_size=20)
versions = st.sampled_from(["", "1.0", "9"]) | st.text(max_size=5)
sizes = st.integers(-3, 5) | st.sampled_from([2**20, 2**40, 2**62, 2**63 - 1, -(2**63)])
int32 = st.integers(-(2**31), 2**31 - 1)

parameter = st.one_of(
    st.builds(oip.InferParameter),
    st.builds(oip.InferParameter, bool_param=st.booleans()),
    st.builds(oip.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
    st.builds(oip.InferParameter, string_param=st.text(max_size=5)),
    st.builds(oip.InferParameter, double_param=st.floats()),
)
parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "x"]) | st.text(max_size=5),
    parameter,
    max_size=2,
)
contents = st.builds(
    oip.InferTensorContents,
    bool_contents=st.lists(st.booleans(), max_size=3),
    int_contents=st.lists(int32, max_size=3),
    int64_contents=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=1),
    uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=1),
    fp32_contents=st.lists(st.floats(width=32), max_size=3),
    fp64_contents=st.lists(st.floats(), max_size=1),
    bytes_contents=st.lists(st.binary(max_size=5), max_size=2),
)
datatypes = st.sampled_from([*ELEMENTS, "", "fp32", "FP8"]) | st.text(max_size=5)
tensors = st.builds(
    oip.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["a", "b"]) | st.text(max_size=5),
    datatype=datatypes,
    shape=st.lists(sizes, max_size=3) | st.just([1] * 100),
    parameters=parameters,
    contents=st.none() | contents,
)
infer_requests = st.builds(
    oip.ModelInferRequest,
    model_name=names | st.sampled_from(["m", "raw"]),
    model_version=versions | st.just(""),
    id=st.text(max_size=5),
    parameters=parameters,
    inputs=st.lists(tensors, max_size=3),
    outputs=st.lists(
        st.builds(oip.ModelInferRequest.InferRequestedOutputTensor, name=st.text(max_size=3)),
        max_size=2,
    ),
    raw_input_contents=st.lists(st.binary(max_size=40), max_size=3),
)


@st.composite
def fitting_requests(draw: st.DrawFn) -> oip.ModelInferRequest:
    """Requests that get through the checks, so that what stands behind them is tried too."""
    request = oip.ModelInferRequest(model_name=draw(st.sampled_from(["m", "raw"])))
    for index in range(draw(st.integers(1, 3))):
        datatype = draw(st.sampled_from(sorted(ELEMENTS)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        request.inputs.add(name=str(index), datatype=datatype, shape=shape)
        count = 1
        for length in shape:
            count *= length
        size = ELEMENTS[datatype][0]
        if size:
            raw = draw(st.binary(min_size=count * size, max_size=count * size))
        else:
            elements = draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
            raw = b"".join(len(each).to_bytes(4, "little") + each for each in elements)
        request.raw_input_contents.append(raw)
    return request


prediction_requests = st.builds(
    inference.PredictionsRequest,
    model_name=names,
    model_version=versions,
    input=st.dictionaries(st.text(max_size=5), st.binary(max_size=20), max_size=3),
    sequence_id=st.none() | st.text(max_size=5),
)
management_calls = st.one_of(
    st.tuples(
        st.just("DescribeModel"),
        st.builds(
            management.DescribeModelRequest,
            model_name=names,
            model_version=versions | st.just("all"),
            customized=st.booleans(),
        ),
    ),
    st.tuples(
        st.just("ListModels"),
        st.builds(management.ListModelsRequest, limit=int32, next_page_token=int32),
    ),
    st.tuples(
        st.just("RegisterModel"),
        st.builds(
            management.RegisterModelRequest,
            url=names,
            model_name=names,
            batch_size=int32,
            initial_workers=int32,
            handler=st.text(max_size=5),
            runtime=st.text(max_size=5),
            synchronous=st.booleans(),
        ),
    ),
    st.tuples(
        st.just("ScaleWorker"),
        st.builds(
            management.ScaleWorkerRequest,
            model_name=names,
            model_version=versions,
            min_worker=st.none() | int32,
            max_worker=int32,
        ),
    ),
    st.tuples(
        st.just("SetDefault"),
        st.builds(management.SetDefaultRequest, model_name=names, model_version=versions),
    ),
    st.tuples(
        st.just("UnregisterModel"),
        st.builds(
            management.UnregisterModelRequest,
            model_name=names.filter(lambda name: name not in ("m", "raw")),
            model_version=versions,
        ),
    ),
)
METHODS = [
    (inference, "Predictions"),
    (inference, "Ping"),
    (oip, "ServerLive"),
    (oip, "ModelReady"),
    (oip, "ModelMetadata"),
    (oip, "ModelInfer"),
    (management, "DescribeModel"),
    (management, "ScaleWorker"),
]

ANSWER = (
    b'{"outputs": [{"name": "a", "datatype": "FP32", "shape": [2], "data": [1.5, 2]}, '
    b'{"name": "b", "datatype": "BYTES", "shape": [1], "data": ["x"]}]}'
)


class Door:
    """A server of all three services and a client, on a loop that runs while a call does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.seen: dict[grpc.StatusCode, int] = {}

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        fakes = FakePlanes()
        for name in ("m", "raw"):
            fakes.add(name, does=answers(ANSWER, content_type=b"application/json"))
        fakes.registry.resolve("raw").envelope = ENVELOPE
        services = TorchServeDialect().grpc_services(fakes.planes)
        services += OpenInferenceDialect().grpc_services(fakes.planes)
        server = GrpcServer(
            "127.0.0.1",
            0,
            [*services.inference, *services.management],
            limits=GrpcLimits(max_message_bytes=MAX_MESSAGE_BYTES),
        )
        await server.start()
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                self._channel = channel
                yield
        finally:
            await server.stop(0)

    def call(self, module: Any, method: str, message: bytes) -> tuple[grpc.StatusCode, str]:
        """The status of one call. No answer in time fails the test."""
        code, text = self._loop.run_until_complete(self._call(module, method, message))
        self.seen[code] = self.seen.get(code, 0) + 1
        assert code is not grpc.StatusCode.DEADLINE_EXCEEDED, "no answer"
        assert not text.startswith(FAULT), text
        return code, text

    async def _call(self, module: Any, method: str, message: bytes) -> tuple[Any, str]:
        call = self._channel.unary_unary(f"/{SERVICES[module]}/{method}")
        try:
            await call(message, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""

    def stream(self, messages: list[bytes]) -> int:
        """The number of answers to a stream of requests."""
        return self._loop.run_until_complete(self._stream(messages))

    async def _stream(self, messages: list[bytes]) -> int:
        method = f"/{SERVICES[inference]}/StreamPredictions2"
        call = self._channel.stream_stream(method)(iter(messages), timeout=TIMEOUT_S)
        count = 0
        async for _ in call:
            count += 1
        assert await call.code() is grpc.StatusCode.OK
        return count


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    loop = uvloop.new_event_loop()
    door = Door(loop)
    opened = door.opened()
    loop.run_until_complete(opened.__aenter__())
    yield door
    loop.run_until_complete(opened.__aexit__(None, None, None))
    loop.close()
    print({code.name: count for code, count in door.seen.items()})


def generated(strategy: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """`given`, and no more examples than the suite has time for unless a profile asks for more."""
    count = settings().max_examples
    bounded = settings(
        max_examples=count if count > 100 else 60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    return lambda test: bounded(given(strategy)(test))


@generated(infer_requests)
def test_inference_of_tensors(door: Door, request_: oip.ModelInferRequest) -> None:
    code, text = door.call(oip, "ModelInfer", request_.SerializeToString())
    assert code in EXPECTED, text


@generated(fitting_requests())
def test_inference_of_tensors_that_fit(door: Door, request_: oip.ModelInferRequest) -> None:
    code, text = door.call(oip, "ModelInfer", request_.SerializeToString())
    assert code is grpc.StatusCode.OK, text


@generated(prediction_requests)
def test_predictions(door: Door, request_: inference.PredictionsRequest) -> None:
    code, text = door.call(inference, "Predictions", request_.SerializeToString())
    wanted = request_.model_name in ("m", "raw") and request_.model_version in ("", "1.0")
    unknown = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
    assert code in ((grpc.StatusCode.OK,) if wanted else unknown), text


@generated(st.lists(prediction_requests, max_size=5))
def test_streams_of_predictions(door: Door, requests: list[inference.PredictionsRequest]) -> None:
    assert door.stream([each.SerializeToString() for each in requests]) == len(requests)


@generated(management_calls)
def test_management(door: Door, call: tuple[str, Any]) -> None:
    method, message = call
    code, text = door.call(management, method, message.SerializeToString())
    assert code in EXPECTED, (method, text)


@generated(st.tuples(st.sampled_from(METHODS), st.binary(max_size=200)))
def test_bytes_that_may_be_no_message(door: Door, call: tuple[Any, bytes]) -> None:
    (module, method), message = call
    code, text = door.call(module, method, message)
    assert code in EXPECTED, text
    assert "Error parsing message" not in text


@pytest.mark.parametrize(("module", "method"), METHODS)
def test_a_message_over_the_limit(door: Door, module: Any, method: str) -> None:
    code, _ = door.call(module, method, bytes(MAX_MESSAGE_BYTES + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
