"""The Open Inference Protocol through a real worker with the kservev2 envelope."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import requests
from serving import MODELS, RunningServer, archive, children_of, start_server

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


def test_switched_off(server: RunningServer) -> None:
    assert requests.get(f"{server.inference}/v2", timeout=20).status_code == 404
    with grpc.insecure_channel(server.grpc_inference) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelReady(ModelReadyRequest(name="m"), timeout=20)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
