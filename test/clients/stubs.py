"""Stubs that this script generates from proto/, against a server of ours.

`python stubs.py PROTO GRPC_INFERENCE GRPC_MANAGEMENT METRICS [CERTIFICATE] [INFERENCE_KEY
MANAGEMENT_KEY]` (an empty text: none), run by test_clients.py with a Python that has `grpcio-tools`
and `googleapis-common-protos` (PyPI). The store of the server has echo.mar, streams.mar and
streams_for_ever.mar, none is registered; `torch` is. Calls every rpc of the three services, health
and reflection, and leaves a stream; exits with an error at the first that is not answered as it
should be.
"""

from __future__ import annotations

import importlib
import json
import select
import struct
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import google.rpc
import grpc
from google.protobuf.empty_pb2 import Empty
from grpc_tools import protoc

MODELS = ("echo", "streams", "streams_for_ever")
NAMES = ("inference", "management", "open_inference", "open_inference_grpc")


def generate(proto: str) -> dict[str, tuple[object, object]]:
    folder = tempfile.mkdtemp()
    well_known = str(Path(protoc.__file__).parent / "_proto")
    common = str(Path(next(iter(google.rpc.__path__))).parents[1])
    files = [str(Path(proto) / f"{name}.proto") for name in NAMES]
    command = ["protoc", f"-I{proto}", f"-I{well_known}", f"-I{common}"]
    command += [f"--python_out={folder}", f"--grpc_python_out={folder}", *files]
    assert protoc.main(command) == 0
    sys.path.insert(0, folder)
    return {
        name: tuple(importlib.import_module(f"{name}_pb2{end}") for end in ("", "_grpc"))
        for name in NAMES
    }


def channel_to(address: str, certificate: str) -> grpc.Channel:
    if not certificate:
        return grpc.insecure_channel(address)
    credentials = grpc.ssl_channel_credentials(Path(certificate).read_bytes())
    return grpc.secure_channel(address, credentials)


def main() -> None:
    proto, inference, management, metrics, *more = sys.argv[1:]
    certificate, inference_key, management_key = (*more, "", "", "")[:3]
    modules = generate(proto)
    with channel_to(inference, certificate) as data, channel_to(management, certificate) as control:
        call_management(modules, control, metadata(management_key))
        call_inference(modules, data, metadata(inference_key))
        for name in ("open_inference", "open_inference_grpc"):
            call_open_inference(*modules[name], data, metadata(inference_key))
        leave_a_stream(modules, data, metadata(inference_key), metrics)
        for key, channel in ((inference_key, data), (management_key, control)):
            call_health_and_reflection(channel, metadata(key))
        unregister(modules, control, metadata(management_key))
        for key, channel in ((inference_key, data), (management_key, control)):
            if key:
                must_be_refused(modules, channel, key is management_key)
    print("every rpc was answered")


def metadata(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")] if key else []


def call_management(modules: dict, channel: grpc.Channel, keys: list) -> None:
    messages, services = modules["management"]
    stub = services.ManagementAPIsServiceStub(channel)
    more = {"metadata": keys, "timeout": 60}
    for name in MODELS:
        request = messages.RegisterModelRequest(
            url=f"{name}.mar", initial_workers=1, synchronous=True
        )
        assert "registered" in stub.RegisterModel(request, **more).msg
    listed = json.loads(stub.ListModels(messages.ListModelsRequest(limit=10), **more).msg)
    assert set(MODELS) <= {model["modelName"] for model in listed["models"]}
    request = messages.ScaleWorkerRequest(model_name="echo", min_worker=1, synchronous=True)
    assert "scaled to 1" in stub.ScaleWorker(request, **more).msg
    request = messages.DescribeModelRequest(model_name="echo")
    (described,) = json.loads(stub.DescribeModel(request, **more).msg)
    assert described["workers"][0]["status"] == "READY"
    request = messages.SetDefaultRequest(model_name="echo", model_version="1.0")
    assert "Default version" in stub.SetDefault(request, **more).msg


def unregister(modules: dict, channel: grpc.Channel, keys: list) -> None:
    messages, services = modules["management"]
    stub = services.ManagementAPIsServiceStub(channel)
    for name in MODELS:
        request = messages.UnregisterModelRequest(model_name=name)
        assert "unregistered" in stub.UnregisterModel(request, metadata=keys, timeout=60).msg


def call_inference(modules: dict, channel: grpc.Channel, keys: list) -> None:
    messages, services = modules["inference"]
    stub = services.InferenceAPIsServiceStub(channel)
    more = {"metadata": keys, "timeout": 60}
    assert "Healthy" in stub.Ping(Empty(), **more).health
    request = messages.PredictionsRequest(model_name="echo", input={"data": b"\x00\xff"})
    assert stub.Predictions(request, **more).prediction == b"\x00\xff"
    request = messages.PredictionsRequest(model_name="streams", input={"body": b"3"})
    parts = [answer.prediction for answer in stub.StreamPredictions(request, **more)]
    assert parts == [b"chunk 0 ", b"chunk 1 ", b"chunk 2 ", b"end"]
    requests = [
        messages.PredictionsRequest(
            model_name=model, input={"data": b"%d" % number}, sequence_id="s"
        )
        for number, model in enumerate(("echo", "nobody", "echo"))
    ]
    first, error, last = stub.StreamPredictions2(iter(requests), **more)
    assert (first.prediction, last.prediction) == (b"0", b"2")
    assert error.status.code == grpc.StatusCode.NOT_FOUND.value[0]


def call_open_inference(messages: object, services: object, channel: grpc.Channel, keys: list):
    stub = services.GRPCInferenceServiceStub(channel)
    more = {"metadata": keys, "timeout": 60}
    assert stub.ServerLive(messages.ServerLiveRequest(), **more).live
    assert stub.ServerReady(messages.ServerReadyRequest(), **more).ready
    assert stub.ServerMetadata(messages.ServerMetadataRequest(), **more).name
    assert stub.ModelReady(messages.ModelReadyRequest(name="torch"), **more).ready
    metadata = stub.ModelMetadata(messages.ModelMetadataRequest(name="torch"), **more)
    assert list(metadata.versions) == ["1.0"]
    request = messages.ModelInferRequest(model_name="torch", id="7")
    tensor = request.inputs.add(name="a", datatype="FP32", shape=[2])
    tensor.contents.fp32_contents.extend([1.5, 2])
    answer = stub.ModelInfer(request, **more)
    assert (answer.id, list(answer.outputs[0].contents.fp32_contents)) == ("7", [3, 4])
    tensor.ClearField("contents")
    request.raw_input_contents.append(struct.pack("<2f", 1.5, 2))
    answer = stub.ModelInfer(request, **more)
    assert list(answer.raw_output_contents) == [struct.pack("<2f", 3, 4)]


def leave_a_stream(modules: dict, channel: grpc.Channel, keys: list, metrics: str) -> None:
    """The handler would go on for 100 seconds; its only worker is free again, and the same."""
    messages, services = modules["inference"]
    stub = services.InferenceAPIsServiceStub(channel)
    request = messages.PredictionsRequest(model_name="streams_for_ever", input={"data": b"x"})
    for _ in range(3):
        call = stub.StreamPredictions(request, metadata=keys, timeout=60)
        assert next(call).prediction == b"chunk 0 "
        wait_busy(metrics, 1)
        call.cancel()
        assert call.code() is grpc.StatusCode.CANCELLED
        wait_busy(metrics, 0)
    plain = messages.PredictionsRequest(model_name="streams_for_ever", input={"data": b"plain"})
    assert stub.Predictions(plain, metadata=keys, timeout=20).prediction == b"plain"
    assert 'ts_worker_restarts_total{model_name="streams_for_ever"' not in scraped(metrics)


def wait_busy(metrics: str, count: int) -> None:
    """Until so many workers have requests on board, 20 seconds at most."""
    line = 'ts_busy_workers{model_name="streams_for_ever",model_version="1.0",} '
    deadline = time.monotonic() + 20
    while float(scraped(metrics).partition(line)[2].partition("\n")[0]) != count:
        assert time.monotonic() < deadline, scraped(metrics)
        select.poll().poll(50)


def scraped(metrics: str) -> str:
    with urllib.request.urlopen(f"{metrics}/metrics", timeout=20) as answer:
        return answer.read().decode()


def call_health_and_reflection(channel: grpc.Channel, keys: list) -> None:
    """In bytes, since their stubs are packages of their own."""
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=60) == b"\x08\x01"  # SERVING; needs no key
    reflect = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    list_services = b"\x3a\x01*"
    (answer,) = reflect(iter([list_services]), metadata=keys, timeout=60)
    assert b"org.pytorch.serve.grpc." in answer


def must_be_refused(modules: dict, channel: grpc.Channel, is_management: bool) -> None:
    if is_management:
        messages, services = modules["management"]
        call = services.ManagementAPIsServiceStub(channel).ListModels
        request = messages.ListModelsRequest()
    else:
        call = modules["inference"][1].InferenceAPIsServiceStub(channel).Ping
        request = Empty()
    for keys in ([], metadata("wrong")):
        try:
            call(request, metadata=keys, timeout=60)
        except grpc.RpcError as error:
            code = error.code()
        else:
            code = grpc.StatusCode.OK
        assert code is grpc.StatusCode.PERMISSION_DENIED, code


if __name__ == "__main__":
    main()
