"""TorchServe's gRPC services of a real server with real workers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from serving import MODELS, ROOT, RunningServer, archive, start_server, wait_until

from ts_frontend.grpc.stubs.inference_pb2 import PredictionsRequest
from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub
from ts_frontend.grpc.stubs.management_pb2 import (
    DescribeModelRequest,
    ListModelsRequest,
    RegisterModelRequest,
    ScaleWorkerRequest,
    UnregisterModelRequest,
)
from ts_frontend.grpc.stubs.management_pb2_grpc import ManagementAPIsServiceStub

HANDLERS = ("echo", "streams", "context_probe", "fails_on_predict", "streams_for_ever")


@pytest.fixture(scope="module")
def management(server: RunningServer) -> Iterator[ManagementAPIsServiceStub]:
    with grpc.insecure_channel(server.grpc_management) as channel:
        yield ManagementAPIsServiceStub(channel)


@pytest.fixture(scope="module")
def inference(server: RunningServer) -> Iterator[InferenceAPIsServiceStub]:
    with grpc.insecure_channel(server.grpc_inference) as channel:
        yield InferenceAPIsServiceStub(channel)


@pytest.fixture(scope="module", autouse=True)
def models(store: Path, management: ManagementAPIsServiceStub) -> None:
    for name in HANDLERS:
        archive(store, name, MODELS / f"{name}.py")
        request = RegisterModelRequest(url=f"{name}.mar", initial_workers=1, synchronous=True)
        answer = management.RegisterModel(request, timeout=60)
        assert answer.msg == f'Model "{name}" Version: 1.0 registered with 1 initial workers'


def asking(model: str, body: bytes = b"x", **more: str) -> PredictionsRequest:
    return PredictionsRequest(model_name=model, input={"data": body}, **more)


def test_ping(inference: InferenceAPIsServiceStub, server: RunningServer) -> None:
    assert inference.Ping(Empty(), timeout=20).health == '{\n  "status": "Healthy"\n}'
    for address in (server.grpc_inference, server.grpc_management):
        with grpc.insecure_channel(address) as channel:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=20)
            assert answer.status == HealthCheckResponse.SERVING


def test_predictions(inference: InferenceAPIsServiceStub) -> None:
    assert inference.Predictions(asking("echo", b"\x00\xff"), timeout=20).prediction == b"\x00\xff"
    large = bytes(5_000_000)
    with pytest.raises(grpc.RpcError) as too_large_for_a_default_client:
        inference.Predictions(asking("echo", large), timeout=20)
    assert too_large_for_a_default_client.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_handler_sees_the_metadata_of_the_call(inference: InferenceAPIsServiceStub) -> None:
    metadata = (("x-mine", "1"), ("x-raw-bin", b"\xff\x00"))
    call = inference.Predictions(asking("context_probe"), metadata=metadata, timeout=20)
    seen = json.loads(call.prediction)
    assert seen["headers"] == {"x-mine": "1", "x-raw-bin": "/wA="}


def test_a_stream(inference: InferenceAPIsServiceStub) -> None:
    request = PredictionsRequest(model_name="streams", input={"body": b"3"})
    parts = [message.prediction for message in inference.StreamPredictions(request, timeout=20)]
    assert parts == [b"chunk 0 ", b"chunk 1 ", b"chunk 2 ", b"end"]


@pytest.mark.parametrize("way", ["cancel", "deadline", "leave"])
def test_a_stream_that_its_client_leaves_frees_the_worker(
    inference: InferenceAPIsServiceStub, server: RunningServer, way: str
) -> None:
    """The handler would go on for 100 seconds."""

    def busy_workers() -> float:
        return server.metric("ts_busy_workers", "streams_for_ever")

    (pid,) = server.worker_pids("streams_for_ever")
    with grpc.insecure_channel(server.grpc_inference) as channel:
        call = InferenceAPIsServiceStub(channel).StreamPredictions(
            asking("streams_for_ever"), timeout=0.5 if way == "deadline" else 60
        )
        assert next(call).prediction == b"chunk 0 "
        if way != "deadline":  # which may be over by now
            assert busy_workers() == 1
        if way == "cancel":
            call.cancel()
        if way != "leave":
            with pytest.raises(grpc.RpcError) as ended:
                list(call)
            wanted = "CANCELLED" if way == "cancel" else "DEADLINE_EXCEEDED"
            assert ended.value.code().name == wanted
    wait_until(lambda: busy_workers() == 0, what="a free worker")
    answer = inference.Predictions(asking("streams_for_ever", b"plain"), timeout=20)
    assert answer.prediction == b"plain"
    assert server.worker_pids("streams_for_ever") == [pid]


def test_a_stream_of_requests(inference: InferenceAPIsServiceStub) -> None:
    requests = [asking("echo", b"%d" % number, sequence_id="s") for number in range(20)]
    answers = inference.StreamPredictions2(iter(requests), timeout=30)
    assert [answer.prediction for answer in answers] == [b"%d" % number for number in range(20)]


def test_a_failing_handler(inference: InferenceAPIsServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        inference.Predictions(asking("fails_on_predict"), timeout=20)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failed.value.details() == (
        "Prediction failed\norg.pytorch.serve.http.InternalServerException"
    )


def test_management(management: ManagementAPIsServiceStub) -> None:
    listed = json.loads(management.ListModels(ListModelsRequest(), timeout=20).msg)
    assert [model["modelName"] for model in listed["models"]] == sorted(HANDLERS)
    scale = ScaleWorkerRequest(model_name="echo", min_worker=2, synchronous=True)
    answer = management.ScaleWorker(scale, timeout=60)
    assert answer.msg == "Workers scaled to 2 for model: echo"
    describe = DescribeModelRequest(model_name="echo")
    (model,) = json.loads(management.DescribeModel(describe, timeout=20).msg)
    assert [worker["status"] for worker in model["workers"]] == ["READY", "READY"]
    scale = ScaleWorkerRequest(model_name="echo", min_worker=0, synchronous=True)
    assert management.ScaleWorker(scale, timeout=60).msg == "Workers scaled to 0 for model: echo"
    scale.min_worker = 1
    management.ScaleWorker(scale, timeout=60)


def test_an_archive_outside_the_store(management: ManagementAPIsServiceStub) -> None:
    for url in ("../echo.mar", "nobody.mar"):
        with pytest.raises(grpc.RpcError) as failed:
            management.RegisterModel(RegisterModelRequest(url=url), timeout=20)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as failed:
        management.RegisterModel(RegisterModelRequest(url="echo.mar"), timeout=20)
    assert failed.value.code() is grpc.StatusCode.UNKNOWN


def test_calls_are_in_the_access_log(
    server: RunningServer, inference: InferenceAPIsServiceStub
) -> None:
    with pytest.raises(grpc.RpcError):
        inference.Predictions(asking("nobody"), timeout=20)
    log = server.folder / "logs" / "access_log.log"
    line = '"gRPC org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions HTTP/2.0" 5 '
    wait_until(lambda: line in log.read_text(), what="the call's line")


def test_many_clients_at_once(inference: InferenceAPIsServiceStub, server: RunningServer) -> None:
    wrong: list[bytes] = []

    def ask(lane: int) -> None:
        with grpc.insecure_channel(server.grpc_inference) as channel:
            stub = InferenceAPIsServiceStub(channel)
            for number in range(50):
                mark = b"%d-%d" % (lane, number)
                got = stub.Predictions(asking("echo", mark), timeout=30).prediction
                if got != mark:
                    wrong.append(got)

    threads = [threading.Thread(target=ask, args=(lane,)) for lane in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_workers_start_while_calls_run(
    server: RunningServer,
    inference: InferenceAPIsServiceStub,
    management: ManagementAPIsServiceStub,
) -> None:
    """gRPC's threads and the fork that starts a worker do not get in each other's way."""
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            inference.Predictions(asking("echo"), timeout=30)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for number in range(10):
            register = RegisterModelRequest(
                url="echo.mar", model_name=f"late{number}", initial_workers=1, synchronous=True
            )
            management.RegisterModel(register, timeout=30)
    finally:
        done.set()
        asker.join()
    for number in range(10):
        unregister = UnregisterModelRequest(model_name=f"late{number}")
        management.UnregisterModel(unregister, timeout=30)
    log = server.log.read_text()
    assert "ended by signal" not in log
    assert "fork" not in log


# Other ways to start.


def test_without_grpc(tmp_path: Path) -> None:
    running = start_server(tmp_path / "server", tmp_path / "store", enable_grpc="false")
    assert running.grpc_inference == running.grpc_management == ""
    assert running.stop() == 0


def test_only_loopback_is_listened_on_by_default(server: RunningServer) -> None:
    assert server.grpc_inference.startswith("127.0.0.1:")
    assert server.grpc_management.startswith("127.0.0.1:")


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[RunningServer]:
    """A server with keys and TLS."""
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    running = start_server(
        tmp_path / "server",
        tmp_path / "store",
        has_tokens=True,
        enable_grpc_ssl="true",
        certificate_file=certificate,
        private_key_file=key,
    )
    yield running
    assert running.stop() == 0, running.tail()


def test_keys_and_tls(locked: RunningServer, tmp_path: Path) -> None:
    credentials = grpc.ssl_channel_credentials((tmp_path / "cert.pem").read_bytes())
    keys = json.loads((locked.folder / "key_file.json").read_text())
    doors = {
        "inference": (
            locked.grpc_inference,
            lambda channel: InferenceAPIsServiceStub(channel).Ping,
        ),
        "management": (
            locked.grpc_management,
            lambda channel: ManagementAPIsServiceStub(channel).ListModels,
        ),
    }
    for kind, (address, method_of) in doors.items():
        with grpc.secure_channel(address, credentials) as channel:
            method = method_of(channel)
            request = Empty() if kind == "inference" else ListModelsRequest()
            for wrong in (None, "API", "management" if kind == "inference" else "inference"):
                metadata = () if wrong is None else bearer(keys[wrong]["key"])
                with pytest.raises(grpc.RpcError) as refused:
                    method(request, metadata=metadata, timeout=20)
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
                assert refused.value.details() == (
                    "Token Authorization failed. Token either incorrect, expired, or not "
                    "provided correctly"
                )
            method(request, metadata=bearer(keys[kind]["key"]), timeout=20)


def bearer(key: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {key}"),)


def test_a_running_call_is_finished_before_the_server_stops(tmp_path: Path, store: Path) -> None:
    running = start_server(tmp_path / "server", store, shutdown_timeout="20")
    running.register("streams.mar", initial_workers=1)
    with grpc.insecure_channel(running.grpc_inference) as channel:
        request = PredictionsRequest(model_name="streams", input={"body": b"2000"})
        call = InferenceAPIsServiceStub(channel).StreamPredictions(request, timeout=60)
        next(call)
        running.process.send_signal(signal.SIGTERM)
        assert [message.prediction for message in call][-1] == b"end"
    assert running.process.wait(30) == 0


def test_a_taken_port_stops_the_start(tmp_path: Path, server: RunningServer) -> None:
    port = server.grpc_inference.rpartition(":")[2]
    config = tmp_path / "config.properties"
    config.write_text(
        "inference_address=http://127.0.0.1:0\nmanagement_address=http://localhost:0\n"
        f"metrics_address=http://127.0.0.1:0\ngrpc_inference_port={port}\n"
        "grpc_management_port=0\ndisable_system_metrics=true\n"
    )
    command = [sys.executable, "-m", "ts_frontend", "--ts-config", str(config)]
    command += ["--model-store", str(tmp_path), "--ncs", "--dt"]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT / 'frontend'}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert f"127.0.0.1:{port} cannot be listened on" in result.stdout + result.stderr
