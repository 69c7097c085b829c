"""What an operator may switch on against overload: 429, priorities, batches by a target latency."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import requests
import uvloop
from serving import RunningServer, archive, start_server, wait_until

from benchmarks.overload import HANDLER, Client
from ts_frontend.grpc.stubs.inference_pb2 import PredictionsRequest
from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub

WORKERS = "minWorkers: 1\nmaxWorkers: 1\n"
CONFIGS = {
    "narrow": "jobQueueSize: 1\nhandler:\n  service_ms: 400\n",
    "single": "handler:\n  service_ms: 100\n",
    "adaptive": "batchSize: 32\nbatching: adaptive\ntargetLatency: 300\n"
    "handler:\n  service_ms: 30\n",
}


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("configs")
    for name, text in CONFIGS.items():
        config = folder / name / "model-config.yaml"
        config.parent.mkdir()
        config.write_text(WORKERS + text)
        archive(store, name, HANDLER, config_file=str(config))
    running = start_server(
        tmp_path_factory.mktemp("server"),
        store,
        load_models=",".join(f"{name}.mar" for name in CONFIGS),
        overload_status=429,
        priority_header="x-priority",
        priority_weights="high=8,low=1",
    )
    for name in CONFIGS:
        running.wait_ready(name)
    yield running
    running.stop_and_leave_nothing()


def test_serve_2764_a_full_queue_is_429_where_that_is_set(server: RunningServer) -> None:
    url = f"{server.inference}/predictions/narrow"
    with ThreadPoolExecutor(6) as clients, grpc.insecure_channel(server.grpc_inference) as channel:
        asked = [clients.submit(requests.post, url, data=f"n{n}", timeout=60) for n in range(6)]
        wait_until(lambda: sum(future.done() for future in asked) >= 4, what="refusals")
        request = PredictionsRequest(model_name="narrow", input={"data": b"g"})
        with pytest.raises(grpc.RpcError) as full:
            InferenceAPIsServiceStub(channel).Predictions(request, timeout=20)
        answers = [future.result() for future in asked]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == 4
    for answer in refused:
        assert answer.status_code == 429
        assert answer.headers["x-error-reason"] == "queue_full"
        assert int(answer.headers["Retry-After"]) >= 1
    assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    pushback = dict(full.value.trailing_metadata())["grpc-retry-pushback-ms"]
    assert int(pushback) > 0


def test_serve_2291_the_important_go_first_and_nobody_starves(server: RunningServer) -> None:
    url = f"{server.inference}/predictions/single"

    def ask(name: str, priority: str) -> int:
        return requests.post(
            url, data=name, headers={"X-Priority": priority}, timeout=60
        ).status_code

    with ThreadPoolExecutor(45) as clients:
        low = [clients.submit(ask, f"low{number}", "low") for number in range(30)]
        wait_until(
            lambda: server.describe("single")["jobQueueStatus"]["pendingRequests"] > 20,
            what="a queue",
        )
        high = [clients.submit(ask, f"high{number}", "high") for number in range(12)]
        assert {future.result() for future in low + high} == {200}
    ran = server.predict("single", b"?").text.split()
    first = min(ran.index(f"high{number}") for number in range(12))
    last = max(ran.index(f"high{number}") for number in range(12))
    between = [name for name in ran[first:last] if name.startswith("low")]
    assert len(between) <= 4, "one of the others for eight of these"
    assert [name for name in ran[last:] if name.startswith("low")], "they had overtaken somebody"


def test_serve_1699_batches_form_under_load_and_nobody_waits_for_one(
    server: RunningServer,
) -> None:
    async def measure() -> tuple[float, float, float]:
        client = Client(int(server.inference.rpartition(":")[2]), "/predictions/adaptive")
        alone = await client.closed(1, 2.0)
        crowd = await client.closed(24, 4.0)
        client.close()
        times_s = sorted(answer.seconds for answer in crowd.served())
        alone_s = sorted(answer.seconds for answer in alone.served())
        return (
            alone_s[len(alone_s) // 2],
            len(crowd.served()) / crowd.seconds,
            times_s[int(len(times_s) * 0.95)],
        )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        alone_s, rate_per_s, late_s = runner.run(measure())
    print(
        f"alone {alone_s * 1000:.0f} ms; 24 clients {rate_per_s:.0f}/s, p95 {late_s * 1000:.0f} ms"
    )
    assert alone_s < 0.1, "a delay for a batch that nobody joins"
    assert rate_per_s > 4 * (1 / 0.03), "one by one would be 33 in a second"
    assert late_s < 0.3, "the target"
