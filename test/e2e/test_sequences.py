"""Sequences that belong to one worker, and requests that go round (real workers)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import requests
from serving import MODELS, RunningServer, archive, start_server

from ts_frontend.grpc.stubs.inference_pb2 import PredictionsRequest
from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub

SEQUENCES = """
minWorkers: {workers}
maxWorkers: {workers}
batchSize: 4
sequenceBatching: true
sequenceMaxIdleMSec: 60000
maxNumSequence: 4
maxSequenceJobQueueSize: 10
"""
CONFIGS = {
    "sequences": SEQUENCES.format(workers=2),
    "rounds": "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\ncontinuousBatching: true\n",
    "both": SEQUENCES.format(workers=1) + "continuousBatching: true\n",
}
ID = "ts_request_sequence_id"


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("configs")
    for name, text in CONFIGS.items():
        config = folder / name / "model-config.yaml"
        config.parent.mkdir()
        config.write_text(text)
        archive(store, name, MODELS / "sums_sequences.py", config_file=str(config))
    running = start_server(
        tmp_path_factory.mktemp("server"),
        store,
        load_models=",".join(f"{name}.mar" for name in CONFIGS),
    )
    running.wait_ready("sequences", 2)
    running.wait_ready("rounds")
    running.wait_ready("both")
    yield running
    assert running.stop() == 0, running.tail()


def ask(server: RunningServer, model: str, body: str, sequence: str = "") -> requests.Response:
    return requests.post(
        f"{server.inference}/predictions/{model}",
        data=body,
        headers={ID: sequence} if sequence else {},
        timeout=60,
    )


def test_each_sequence_has_its_worker_and_its_order(server: RunningServer) -> None:
    def run(sequence: str) -> list[list[str]]:
        return [ask(server, "sequences", str(n), sequence).text.split() for n in range(1, 9)]

    with ThreadPoolExecutor(4) as clients:
        runs = list(clients.map(run, "abcd"))
    for answers in runs:
        assert [int(total) for total, _, _ in answers] == [1, 3, 6, 10, 15, 21, 28, 36]
        assert len({pid for _, _, pid in answers}) == 1
    assert len({answers[0][2] for answers in runs}) == 2  # shared evenly
    refused = ask(server, "sequences", "1", "e")
    assert refused.status_code == 503
    assert refused.headers["x-error-reason"] == "too_many_sequences"
    assert "maxSequenceJobQueueSize" in refused.json()["message"]


def test_requests_go_round_until_they_are_done(server: RunningServer) -> None:
    def run(pieces: int) -> list[int]:
        text = ask(server, "rounds", f"1*{pieces}").text
        return [int(line.split()[0]) for line in text.splitlines()]

    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(run, range(2, 22))) == [
            list(range(1, pieces + 1)) for pieces in range(2, 22)
        ]


def test_the_handler_ends_a_sequence(server: RunningServer) -> None:
    """There is room for four at a time; each ends with a 0."""
    for number in range(6):
        sequence = f"s{number}"
        assert ask(server, "both", "2", sequence).text.split()[0] == "2"
        assert ask(server, "both", "3*2", sequence).text.split()[0::3] == ["5", "8"]
        assert ask(server, "both", "0", sequence).status_code == 200
    begun = ask(server, "both", "1")
    assert begun.headers["x-sequence"].startswith("ts-seq-")


def number(text: str, **more: str) -> PredictionsRequest:
    return PredictionsRequest(model_name="both", input={"data": text.encode()}, **more)


def test_sequences_over_grpc(server: RunningServer) -> None:
    """One stream carries two of them; a plain call joins one by its metadata, as over HTTP."""
    asked = [("g", "1"), ("h", "10"), ("g", "2"), ("h", "20"), ("g", "3*2")]
    with grpc.insecure_channel(server.grpc_inference) as channel:
        stub = InferenceAPIsServiceStub(channel)
        requests_ = (number(text, sequence_id=sequence) for sequence, text in asked)
        answers = list(stub.StreamPredictions2(requests_, timeout=60))
        assert [int(answer.prediction.split()[0]) for answer in answers] == [1, 10, 3, 30, 6, 9]
        for sequence, total in (("g", 9), ("h", 30)):
            last = stub.Predictions(number("0"), metadata=((ID, sequence),), timeout=60)
            assert int(last.prediction.split()[0]) == total
