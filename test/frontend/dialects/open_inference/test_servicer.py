"""The protocol over gRPC, under both names of its service."""

from __future__ import annotations

import json
import struct
import time

import grpc
import pytest
from fake_planes import answers, fails, holds
from fakes import wait_until

from ts.protocol.tensors import ENVELOPE, JSON_LENGTH_HEADER
from ts_frontend.core import errors
from ts_frontend.core.inference import ResponseChunk
from ts_frontend.core.job import JobState
from ts_frontend.core.model import TensorSpec
from ts_frontend.grpc.stubs.open_inference_pb2 import (
    ModelInferRequest,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ServerLiveRequest,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
)

Code = grpc.StatusCode
ANSWER = {
    "id": "7",
    "model_name": "m",
    "model_version": "1.0",
    "outputs": [{"name": "a", "datatype": "INT64", "data": [1, 2], "shape": [2]}],
}
ANSWERED = json.dumps(ANSWER).encode()


def asking(name: str = "m", **more) -> ModelInferRequest:
    request = ModelInferRequest(model_name=name, id="7", **more)
    tensor = request.inputs.add(name="a", datatype="FP32", shape=[2])
    tensor.contents.fp32_contents.extend([1.5, 2])
    return request


async def failure_of(call) -> tuple[Code, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code(), failed.value.details()


async def test_the_server(oip, fakes) -> None:
    model = fakes.add("m")
    assert (await oip.ServerLive(ServerLiveRequest())).live
    assert (await oip.ServerReady(ServerReadyRequest())).ready
    model.healthy_count = 0
    assert not (await oip.ServerReady(ServerReadyRequest())).ready
    assert await oip.ServerMetadata(ServerMetadataRequest()) == ServerMetadataResponse(
        name="Torchserve",
        version="0.13.0",
        extensions=["kserve", "kubeflow", "binary_tensor_data"],
    )


async def test_readiness_of_a_model(oip, fakes) -> None:
    model = fakes.add("m")
    for version in ("", "1.0"):
        request = ModelReadyRequest(name="m", version=version)
        model.healthy_count = 1
        assert (await oip.ModelReady(request)).ready
        model.healthy_count = 0
        assert not (await oip.ModelReady(request)).ready


async def test_a_model_without_workers_is_not_ready(oip, fakes) -> None:
    """None is wanted, so nothing is wrong; but a request would be refused."""
    model = fakes.add("m")
    model.min_workers = model.healthy_count = 0
    assert not (await oip.ModelReady(ModelReadyRequest(name="m"))).ready
    model.is_dormant = True  # its first request loads it
    assert (await oip.ModelReady(ModelReadyRequest(name="m"))).ready


async def test_metadata_of_a_model(oip, fakes) -> None:
    fakes.add("m", "1.0", inputs=(TensorSpec("a", "FP32", (-1, 3)),))
    fakes.add("m", "2.0")
    assert await oip.ModelMetadata(ModelMetadataRequest(name="m")) == ModelMetadataResponse(
        name="m",
        versions=["1.0", "2.0"],
        inputs=[ModelMetadataResponse.TensorMetadata(name="a", datatype="FP32", shape=[-1, 3])],
    )


async def test_infer(oip, fakes) -> None:
    model = fakes.add("m", does=answers(ANSWERED))
    response = await oip.ModelInfer(asking())
    assert (response.id, response.model_name, response.model_version) == ("7", "m", "1.0")
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("a", "INT64", [2])
    assert list(output.contents.int64_contents) == [1, 2]
    assert not response.raw_output_contents
    (job,) = model.jobs
    assert job.request.headers == []
    assert [(part.name, part.content_type) for part in job.request.parts] == [
        (b"body", b"application/json")
    ]
    assert json.loads(model.requests[0]["body"])["inputs"] == [
        {"name": "a", "shape": [2], "datatype": "FP32", "data": [1.5, 2.0]}
    ]


async def test_metadata_becomes_headers(oip, fakes) -> None:
    model = fakes.add("m", does=answers(ANSWERED))
    await oip.ModelInfer(asking(), metadata=(("x-tenant", "blue"),))
    assert model.headers == [{"x-tenant": "blue"}]


async def test_raw_asks_for_raw(oip, fakes) -> None:
    fakes.add("m", does=answers(ANSWERED))
    request = ModelInferRequest(model_name="m")
    request.inputs.add(name="a", datatype="FP16", shape=[2])
    request.raw_input_contents.append(struct.pack("<2e", 1, 2))
    response = await oip.ModelInfer(request)
    assert response.raw_output_contents == [struct.pack("<2q", 1, 2)]
    assert not response.outputs[0].HasField("contents")


async def test_the_version_may_be_named(oip, fakes) -> None:
    fakes.add("m", "1.0", answers(ANSWERED))
    other = {**ANSWER, "model_version": None}
    fakes.add("m", "2.0", answers(json.dumps(other).encode()))
    assert (await oip.ModelInfer(asking())).model_version == "1.0"
    assert (await oip.ModelInfer(asking(model_version="2.0"))).model_version == "2.0"


async def test_large_tensors(oip, fakes) -> None:
    count = 300_000
    outputs = [{"name": "a", "datatype": "FP32", "shape": [count], "data": [0.5] * count}]
    fakes.add("m", does=answers(json.dumps({"outputs": outputs}).encode()))
    request = ModelInferRequest(model_name="m")
    request.inputs.add(name="a", datatype="FP32", shape=[count])
    request.raw_input_contents.append(bytes(4 * count))
    response = await oip.ModelInfer(request)
    assert response.raw_output_contents[0] == struct.pack("<f", 0.5) * count


FAILURES = [
    (errors.NoWorker("none"), Code.UNAVAILABLE),
    (errors.QueueFull("full"), Code.UNAVAILABLE),
    (errors.WorkerDied(), Code.INTERNAL),
    (errors.WorkerDied(out_of_memory=True), Code.RESOURCE_EXHAUSTED),
    (errors.DeadlineExceeded("late"), Code.DEADLINE_EXCEEDED),
    (errors.ModelError(503, "Prediction failed"), Code.UNAVAILABLE),
    (errors.ModelError(400, "an input must be"), Code.INVALID_ARGUMENT),
    (errors.ModelError(200, "odd"), Code.UNKNOWN),
]


@pytest.mark.parametrize(
    ("error", "code"), FAILURES, ids=[f"{type(e).__name__}-{c.name}" for e, c in FAILURES]
)
async def test_failures(oip, fakes, error, code) -> None:
    fakes.add("m", does=fails(error))
    assert await failure_of(oip.ModelInfer(asking())) == (code, error.message)


async def test_what_is_not_there(oip, fakes) -> None:
    fakes.add("m")
    not_found = (Code.NOT_FOUND, "Model not found: zz")
    assert await failure_of(oip.ModelInfer(asking("zz"))) == not_found
    assert await failure_of(oip.ModelReady(ModelReadyRequest(name="zz"))) == not_found
    assert await failure_of(oip.ModelMetadata(ModelMetadataRequest(name="zz"))) == not_found
    version = (Code.NOT_FOUND, "Model version: 9 does not exist for model: m")
    assert await failure_of(oip.ModelInfer(asking(model_version="9"))) == version
    for call in (
        oip.ModelInfer(ModelInferRequest()),
        oip.ModelReady(ModelReadyRequest()),
        oip.ModelMetadata(ModelMetadataRequest()),
    ):
        assert (await failure_of(call))[0] is Code.INVALID_ARGUMENT


async def test_a_false_claim_never_reaches_the_model(oip, fakes) -> None:
    model = fakes.add("m")
    for shape in ([2**40], [2**62, 4], [-1], [3]):
        request = ModelInferRequest(model_name="m")
        request.inputs.add(name="a", datatype="FP32", shape=shape)
        request.raw_input_contents.append(bytes(8))
        assert (await failure_of(oip.ModelInfer(request)))[0] is Code.INVALID_ARGUMENT
    assert model.jobs == []


async def test_an_answer_of_another_form_is_an_error(oip, fakes) -> None:
    fakes.add("m", does=answers(b"[1]"))
    code, text = await failure_of(oip.ModelInfer(asking()))
    assert code is Code.INTERNAL
    assert "not an Open Inference response" in text


async def test_a_status_that_the_handler_chose_is_a_code(oip, fakes) -> None:
    fakes.add("m", does=answers(b"who?", status=404))
    assert await failure_of(oip.ModelInfer(asking())) == (Code.NOT_FOUND, "who?")


async def test_deadline_and_leaving(oip, fakes) -> None:
    model = fakes.add("m", does=holds)
    call = oip.ModelInfer(asking(), timeout=30)
    (job,) = await wait_until(lambda: model.jobs)
    assert 0 < job.deadline_s - time.monotonic() <= 31  # the wire rounds it up
    call.cancel()
    await wait_until(lambda: job.state is JobState.CANCELLED)


@pytest.mark.parametrize("fakes", [{"open_inference": False}], indirect=True)
async def test_switched_off_it_is_not_there(oip, fakes) -> None:
    assert (await failure_of(oip.ServerLive(ServerLiveRequest())))[0] is Code.UNIMPLEMENTED


# Workers that take tensors as bytes.


@pytest.mark.parametrize("is_raw", [True, False])
async def test_tensors_stay_bytes_on_the_way_to_our_envelope(oip, fakes, is_raw: bool) -> None:
    """And come back so, whichever form the client gets."""
    elements = struct.pack("<2f", 3, -4)
    head = json.dumps(
        {
            "outputs": [
                {
                    "name": "a",
                    "datatype": "FP32",
                    "shape": [2],
                    "parameters": {"binary_data_size": 8, "x": 1},
                }
            ]
        }
    ).encode()
    length = (JSON_LENGTH_HEADER.encode(), str(len(head)).encode())
    chunk = ResponseChunk(200, b"", b"application/octet-stream", [length], head + elements, True)
    model = fakes.add("m", does=lambda job: job.push(chunk))
    model.model.envelope = ENVELOPE
    request = ModelInferRequest(model_name="m", id="7")
    tensor = request.inputs.add(name="a", datatype="FP32", shape=[2])
    words = request.inputs.add(name="w", datatype="BYTES", shape=[1])
    raws = [struct.pack("<2f", 1.5, -2), b"\x02\0\0\0\xffx"]
    if is_raw:
        request.raw_input_contents.extend(raws)
    else:
        tensor.contents.fp32_contents.extend([1.5, -2])
        words.contents.bytes_contents.append(b"\xffx")
    response = await oip.ModelInfer(request)
    (output,) = response.outputs
    assert output.parameters["x"].int64_param == 1
    if is_raw:
        assert list(response.raw_output_contents) == [elements]
    else:
        assert list(output.contents.fp32_contents) == [3, -4]
    (parts,) = model.requests
    assert json.loads(parts.pop("body")) == {
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [2]},
            {"name": "w", "datatype": "BYTES", "shape": [1]},
        ],
        "id": "7",
        "model_name": "m",
        "parameters": {"binary_data_output": True},
    }
    assert parts == {"tensor:0": raws[0], "tensor:1": raws[1]}


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", [3], b"12345678"),
        ("FP32", [2**20, 2**20], b"12345678"),
        ("FP32", [-2], b"12345678"),
        ("FP33", [2], b"12345678"),
        ("BYTES", [2**40], b"12345678"),
        ("BYTES", [1], b"\x05\0\0\0x"),
    ],
)
async def test_the_checks_of_bytes_are_the_same(oip, fakes, datatype, shape, raw) -> None:
    model = fakes.add("m")
    model.model.envelope = ENVELOPE
    request = ModelInferRequest(model_name="m", raw_input_contents=[raw])
    request.inputs.add(name="a", datatype=datatype, shape=shape)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await oip.ModelInfer(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert model.jobs == []
