"""The Open Inference Protocol through a real worker with the kservev2 envelope."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import requests
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from serving import (
    DIGITS,
    MODELS,
    RunningServer,
    archive,
    archive_digits,
    children_of,
    start_server,
)

from ts_frontend.grpc.stubs import open_inference_grpc_pb2_grpc, open_inference_pb2_grpc
from ts_frontend.grpc.stubs.open_inference_pb2 import (
    ModelInferRequest,
    ModelMetadataRequest,
    ModelReadyRequest,
)

CONFIG = """
minWorkers: 1
maxWorkers: 1
inputs:
  - {name: a, datatype: FP32, shape: [-1, 2]}
outputs:
  - {name: a, datatype: FP64, shape: [-1]}
"""


@pytest.fixture(scope="module")
def oip_server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("oip")
    running = start_server(
        folder, store, ts_open_inference_protocol="true", service_envelope="kservev2"
    )
    (folder / "model-config.yaml").write_text(CONFIG)
    archive(store, "doubles", MODELS / "doubles.py")
    archive(
        store,
        "declared",
        MODELS / "doubles.py",
        config_file=str(folder / "model-config.yaml"),
    )
    for name in ("doubles", "declared"):
        answer = running.register(f"{name}.mar", initial_workers=1)
        assert answer.status_code == 200, answer.text
    yield running
    workers = children_of(running.process.pid)
    assert running.stop() == 0, running.tail()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


def infer(server: RunningServer, value: object, *blobs: bytes, model: str = "doubles"):
    text = json.dumps(value).encode()
    headers = {"content-type": "application/json"}
    if blobs:
        headers["Inference-Header-Content-Length"] = str(len(text))
    return requests.post(
        f"{server.inference}/v2/models/{model}/infer",
        data=text + b"".join(blobs),
        headers=headers,
        timeout=20,
    )


def test_json(oip_server: RunningServer) -> None:
    answer = infer(
        oip_server,
        {
            "id": "7",
            "inputs": [
                {"name": "a", "shape": [2, 2], "datatype": "INT64", "data": [[1, 2], [3, 4]]},
                {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["ab"]},
            ],
        },
    )
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "id": "7",
        "model_name": "doubles",
        "model_version": "1.0",
        "outputs": [
            {"name": "a", "datatype": "INT64", "data": [2, 4, 6, 8], "shape": [4]},
            {"name": "t", "datatype": "BYTES", "data": ["abab"], "shape": [1]},
        ],
    }


def test_binary(oip_server: RunningServer) -> None:
    answer = infer(
        oip_server,
        {
            "inputs": [
                {
                    "name": "a",
                    "shape": [2],
                    "datatype": "FP16",
                    "parameters": {"binary_data_size": 4},
                }
            ],
            "parameters": {"binary_data_output": True},
        },
        struct.pack("<2e", 1.5, -2),
    )
    assert answer.status_code == 200, answer.text
    json_bytes = int(answer.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(answer.content[:json_bytes])["outputs"]
    assert (output["datatype"], output["shape"]) == ("FP64", [2])
    assert answer.content[json_bytes:] == struct.pack("<2d", 3, -4)


def test_the_envelopes_own_refusal(oip_server: RunningServer) -> None:
    answer = infer(oip_server, {"inputs": [{"name": "a", "shape": [1], "datatype": "FP32"}]})
    assert (answer.status_code, answer.json()) == (400, {"error": '"a": there is no data'})


@pytest.mark.parametrize("stubs", [open_inference_pb2_grpc, open_inference_grpc_pb2_grpc])
def test_grpc(oip_server: RunningServer, stubs) -> None:
    with grpc.insecure_channel(oip_server.grpc_inference) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        assert stub.ModelReady(ModelReadyRequest(name="doubles"), timeout=20).ready
        request = ModelInferRequest(model_name="doubles", id="7")
        tensor = request.inputs.add(name="a", datatype="INT32", shape=[2])
        tensor.contents.int_contents.extend([1, 2])
        response = stub.ModelInfer(request, timeout=20)
        assert (response.id, response.model_name) == ("7", "doubles")
        assert list(response.outputs[0].contents.int64_contents) == [2, 4]
        raw = ModelInferRequest(model_name="doubles")
        raw.inputs.add(name="a", datatype="BF16", shape=[2])
        raw.raw_input_contents.append(b"\x80\x3f\x00\x40")  # 1 and 2
        response = stub.ModelInfer(raw, timeout=20)
        assert response.raw_output_contents == [struct.pack("<2d", 2, 4)]


def test_what_the_archive_declares(oip_server: RunningServer) -> None:
    tensors = {
        "inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "a", "datatype": "FP64", "shape": [-1]}],
    }
    url = f"{oip_server.inference}/v2/models/declared"
    metadata = requests.get(url, timeout=20).json()
    assert metadata == {
        "name": "declared",
        "versions": ["1.0"],
        "platform": "",
        **tensors,
    }
    with grpc.insecure_channel(oip_server.grpc_inference) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        told = stub.ModelMetadata(ModelMetadataRequest(name="declared"), timeout=20)
        assert [list(tensor.shape) for tensor in told.inputs] == [[-1, 2]]
    good = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    assert infer(oip_server, {"inputs": [good]}, model="declared").status_code == 200
    bad = {**good, "shape": [2]}
    refused = infer(oip_server, {"inputs": [bad]}, model="declared")
    assert refused.status_code == 400


# Without service_envelope: tensors for those who ask, values for the default handlers.


@pytest.fixture(scope="module")
def tensor_server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("tensors")
    running = start_server(folder, store, ts_open_inference_protocol="true")
    for form in ("torch", "numpy"):
        (folder / form).mkdir()
        config = folder / form / "model-config.yaml"
        config.write_text(f"tensorInputs: {form}\n")
        archive(store, form, MODELS / "tensors.py", config_file=str(config))
        assert running.register(f"{form}.mar", initial_workers=1).status_code == 200
    archive_digits(store)
    archive(store, "echo", MODELS / "echo.py")
    for name in ("digits", "echo"):
        answer = running.register(f"{name}.mar", initial_workers=1)
        assert answer.status_code == 200, answer.text
    yield running
    assert running.stop() == 0, running.tail()


def infer_raw(server: RunningServer, model: str, *tensors: tuple[str, str, list[int], bytes]):
    """Ask over gRPC with raw contents; name -> (datatype, shape, raw) of the answer."""
    request = ModelInferRequest(model_name=model)
    for name, datatype, shape, raw in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    with grpc.insecure_channel(server.grpc_inference) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = stub.ModelInfer(request, timeout=30)
    return {
        output.name: (output.datatype, list(output.shape), raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


@pytest.mark.parametrize("model", ["torch", "numpy"])
def test_tensors_of_every_kind(tensor_server: RunningServer, model: str) -> None:
    inputs = [
        ("bool", "BOOL", [2], b"\x01\x00"),
        ("i8", "INT8", [1, 2], struct.pack("<2b", 1, -2)),
        ("i64", "INT64", [2, 1], struct.pack("<2q", 1, -2)),
        ("u16", "UINT16", [1], struct.pack("<H", 7))
        if model == "numpy"
        else ("u8", "UINT8", [1], b"\x07"),
        ("half", "FP16", [2], struct.pack("<2e", 1.5, -2)),
        ("f64", "FP64", [], struct.pack("<d", 0.5)),
        ("words", "BYTES", [2], b"\x01\0\0\0\xff\0\0\0\0"),
    ]
    assert infer_raw(tensor_server, model, *inputs) == {
        "bool": ("BOOL", [2], b"\x01\x00"),
        "i8": ("INT8", [1, 2], struct.pack("<2b", 2, -4)),
        "i64": ("INT64", [2, 1], struct.pack("<2q", 2, -4)),
        **(
            {"u16": ("UINT16", [1], struct.pack("<H", 14))}
            if model == "numpy"
            else {"u8": ("UINT8", [1], b"\x0e")}
        ),
        "half": ("FP16", [2], struct.pack("<2e", 3, -4)),
        "f64": ("FP64", [], struct.pack("<d", 1)),
        "words": ("BYTES", [2], b"\x02\0\0\0\xff\xff\0\0\0\0"),
    }


def test_bf16_is_a_type_of_torch(tensor_server: RunningServer) -> None:
    one_and_two = b"\x80\x3f\x00\x40"
    answer = infer_raw(tensor_server, "torch", ("a", "BF16", [2], one_and_two))
    assert answer == {"a": ("BF16", [2], b"\x00\x40\x80\x40")}


def test_tensors_over_rest_in_either_form(tensor_server: RunningServer) -> None:
    value = {"name": "a", "shape": [2], "datatype": "FP32"}
    answer = infer(tensor_server, {"inputs": [{**value, "data": [1.5, 2]}]}, model="torch")
    (output,) = answer.json()["outputs"]
    assert output == {"name": "a", "datatype": "FP32", "shape": [2], "data": [3.0, 4.0]}
    binary = {**value, "parameters": {"binary_data_size": 8}}
    asked = {"inputs": [binary], "parameters": {"binary_data_output": True}, "id": "7"}
    answer = infer(tensor_server, asked, struct.pack("<2f", 1.5, 2), model="torch")
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert json.loads(answer.content[:length]) == {
        "outputs": [binary],
        "model_name": "torch",
        "model_version": "1.0",
        "id": "7",
    }
    assert answer.content[length:] == struct.pack("<2f", 3, 4)


def test_images_for_a_default_handler(tensor_server: RunningServer) -> None:
    images = [(DIGITS / "test_data" / f"{digit}.png").read_bytes() for digit in (3, 7)]
    raw = b"".join(struct.pack("<I", len(image)) + image for image in images)
    ((_, shape, answer),) = infer_raw(
        tensor_server, "digits", ("image", "BYTES", [2], raw)
    ).values()
    assert shape == [2]
    assert [_best(text) for text in _elements(answer)] == ["3", "7"]
    texts = [base64.b64encode(image).decode() for image in images]
    tensor = {"name": "image", "shape": [2], "datatype": "BYTES", "data": texts}
    (output,) = infer(tensor_server, {"inputs": [tensor]}, model="digits").json()["outputs"]
    assert [_best(text) for text in output["data"]] == ["3", "7"]


def _elements(raw: bytes) -> Iterator[bytes]:
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        yield raw[4 : 4 + length]
        raw = raw[4 + length :]


def _best(text: str | bytes) -> str:
    probabilities = json.loads(text)
    return max(probabilities, key=probabilities.get)


def test_an_own_handler_gets_torchserves_json(tensor_server: RunningServer) -> None:
    """Its answer, which is none of the protocol, goes out over REST as it is."""
    tensor = {"name": "a", "shape": [1], "datatype": "FP16", "parameters": {"binary_data_size": 2}}
    answer = infer(tensor_server, {"inputs": [tensor]}, struct.pack("<e", 1.5), model="echo")
    assert answer.json() == {
        "inputs": [{"name": "a", "shape": [1], "datatype": "FP16", "data": [1.5]}]
    }


def test_reflection_knows_every_service(tensor_server: RunningServer) -> None:
    with grpc.insecure_channel(tensor_server.grpc_inference) as channel:
        ask = ServerReflectionStub(channel).ServerReflectionInfo
        (listed,) = ask(iter([ServerReflectionRequest(list_services="")]), timeout=20)
        names = [service.name for service in listed.list_services_response.service]
        assert {name for name in names if "GRPCInferenceService" in name} == {
            "inference.GRPCInferenceService",
            "org.pytorch.serve.grpc.openinference.GRPCInferenceService",
        }
        for name in names:
            wanted = ServerReflectionRequest(file_containing_symbol=name)
            (answer,) = ask(iter([wanted]), timeout=20)
            assert answer.HasField("file_descriptor_response"), (name, answer)


FLOATS = {"name": "a", "shape": [2], "datatype": "FP32", "data": [1, 2]}
DEEP = b"[" * 200_000 + b"]" * 200_000
BAD_BODIES = {
    "wrong dtype": {"inputs": [{**FLOATS, "datatype": "FP8"}]},
    "text for numbers": {"inputs": [{**FLOATS, "data": ["1", "2"]}]},
    "a fraction for an integer": {"inputs": [{**FLOATS, "datatype": "INT32", "data": [1, 2.5]}]},
    "an integer that does not fit": {"inputs": [{**FLOATS, "datatype": "INT8", "data": [300, 1]}]},
    "shape product overflow": {"inputs": [{**FLOATS, "shape": [2**62, 2**62]}]},
    "a length over int64": {"inputs": [{**FLOATS, "shape": [2**64]}]},
    "negative length": {"inputs": [{**FLOATS, "shape": [-2]}]},
    "data too short": {"inputs": [{**FLOATS, "data": [1]}]},
    "data too long": {"inputs": [{**FLOATS, "data": [1, 2, 3]}]},
    "data and bytes": {"inputs": [{**FLOATS, "parameters": {"binary_data_size": 8}}]},
    "bytes without the header": {
        "inputs": [{**FLOATS, "data": None, "parameters": {"binary_data_size": 8}}]
    },
    "unknown output": {"inputs": [FLOATS], "outputs": [{"name": "nobody"}]},
    "no inputs": {},
    "no object": [1],
    "nothing": b"",
    "invalid UTF-8": b'{"inputs": [{"name": "\xff", "shape": [], "datatype": "FP32", "data": 1}]}',
    "half a surrogate": b'{"inputs": [], "id": "\\ud800"}',
    "deep data": b'{"inputs": [{"name": "a", "shape": [1], "datatype": "FP32", "data": %b}]}'
    % DEEP,
    "a deep member that nobody knows": b'{"inputs": [], "more": %b}' % DEEP,
    "deep parameters": b'{"inputs": [], "parameters": %b1%b}' % (b'{"a":' * 99_999, b"}" * 99_999),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
@pytest.mark.parametrize("model", ["torch", "numpy"])
def test_a_bad_body_is_refused_in_the_protocols_form(
    tensor_server: RunningServer, model: str, body: object
) -> None:
    answer = requests.post(
        f"{tensor_server.inference}/v2/models/{model}/infer",
        data=body if isinstance(body, bytes) else json.dumps(body),
        timeout=20,
    )
    assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "status"),
    [("nobody/infer", 404), ("torch/versions/9/infer", 404), ("torch/infer", 413)],
)
def test_what_is_not_there_or_too_large_is_told_in_the_protocols_form(
    tensor_server: RunningServer, path: str, status: int
) -> None:
    body = bytes(7_000_000) if status == 413 else json.dumps({"inputs": [FLOATS]})
    url = f"{tensor_server.inference}/v2/models/{path}"
    answer = requests.post(url, data=body, timeout=20)
    assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text


def bad_message(**changed: object) -> ModelInferRequest:
    """A request of two floats, but for what is `changed`."""
    values = {"name": "a", "datatype": "FP32", "shape": [2], "raw": [struct.pack("<2f", 1, 2)]}
    values |= changed
    request = ModelInferRequest(model_name="torch", model_version=str(values.pop("version", "")))
    for name in values.pop("outputs", ()):
        request.outputs.add(name=name)
    request.raw_input_contents.extend(values.pop("raw"))
    floats = values.pop("floats", ())
    request.inputs.add(**values).contents.fp32_contents.extend(floats)
    return request


BAD_MESSAGES = {
    "wrong dtype": ("INVALID_ARGUMENT", bad_message(datatype="FP8")),
    "shape product overflow": ("INVALID_ARGUMENT", bad_message(shape=[2**62, 2**62])),
    "negative length": ("INVALID_ARGUMENT", bad_message(shape=[-2])),
    "data too short": ("INVALID_ARGUMENT", bad_message(raw=[b"1234"])),
    "data too long": ("INVALID_ARGUMENT", bad_message(raw=[bytes(12)])),
    "contents too short": ("INVALID_ARGUMENT", bad_message(raw=[], floats=[1])),
    "contents of another type": (
        "INVALID_ARGUMENT",
        bad_message(raw=[], floats=[1], shape=[1], datatype="INT64"),
    ),
    "both contents and raw": ("INVALID_ARGUMENT", bad_message(floats=[1, 2])),
    "raw contents for more inputs": ("INVALID_ARGUMENT", bad_message(raw=[bytes(8)] * 2)),
    "BYTES that end too early": (
        "INVALID_ARGUMENT",
        bad_message(datatype="BYTES", raw=[b"\xff" * 8]),
    ),
    "unknown output": ("INVALID_ARGUMENT", bad_message(outputs=["nobody"])),
    "unknown version": ("NOT_FOUND", bad_message(version="9")),
    "unknown model": ("NOT_FOUND", ModelInferRequest(model_name="nobody")),
    "over the limit": (
        "RESOURCE_EXHAUSTED",
        bad_message(shape=[2_000_000], raw=[bytes(8_000_000)]),
    ),
    "invalid UTF-8": ("INVALID_ARGUMENT", b"\x0a\x02\xff\xfe"),
    "cut short": ("INVALID_ARGUMENT", b"\x0a\x20a"),
}


@pytest.mark.parametrize(("code", "message"), BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_a_bad_message_is_refused(
    tensor_server: RunningServer, code: str, message: ModelInferRequest | bytes
) -> None:
    body = message if isinstance(message, bytes) else message.SerializeToString()
    with grpc.insecure_channel(tensor_server.grpc_inference) as channel:
        for package in ("inference", "org.pytorch.serve.grpc.openinference"):
            call = channel.unary_unary(f"/{package}.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError) as refused:
                call(body, timeout=20)
            assert refused.value.code().name == code, refused.value.details()
            assert "class" not in refused.value.details()


def test_a_claim_of_a_huge_tensor_costs_no_memory(tensor_server: RunningServer) -> None:
    """2**40 elements: refused by the server, in every form, before anything is made of it."""
    process = psutil.Process(tensor_server.process.pid)
    processes = [process, *process.children(recursive=True)]
    before = sum(each.memory_info().rss for each in processes)
    claim = {"name": "a", "shape": [2**20, 2**20], "datatype": "FP32"}
    for _ in range(20):
        answer = infer(tensor_server, {"inputs": [{**claim, "data": [1.0]}]}, model="torch")
        assert answer.status_code == 400
        binary = {**claim, "parameters": {"binary_data_size": 2**42}}
        assert infer(tensor_server, {"inputs": [binary]}, b"x", model="torch").status_code == 400
        binary = {**claim, "parameters": {"binary_data_size": 4}}
        assert infer(tensor_server, {"inputs": [binary]}, b"1234", model="torch").status_code == 400
        for datatype in ("FP32", "BYTES"):
            with pytest.raises(grpc.RpcError) as refused:
                infer_raw(tensor_server, "torch", ("a", datatype, [2**20, 2**20], b"1234"))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert sum(each.memory_info().rss for each in processes) - before < 16 * 2**20


def test_switched_off(server: RunningServer) -> None:
    assert requests.get(f"{server.inference}/v2", timeout=20).status_code == 404
    with grpc.insecure_channel(server.grpc_inference) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelReady(ModelReadyRequest(name="m"), timeout=20)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
