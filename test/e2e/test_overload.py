"""A server that is asked for five times what it can do, and requests that nobody waits for."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import requests
import uvloop
from serving import RunningServer, archive, start_server, wait_until

from benchmarks.overload import HANDLER, Client, Step
from ts_frontend.grpc.stubs.inference_pb2 import PredictionsRequest
from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub

CONFIG = """
minWorkers: 1
maxWorkers: 1
jobQueueSize: {queue}
handler:
  service_ms: {service_ms}
"""


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("configs")
    for name, service_ms, queue in (("steady", 20, 100), ("slow", 1000, 100), ("narrow", 400, 1)):
        config = folder / name / "model-config.yaml"
        config.parent.mkdir()
        config.write_text(CONFIG.format(service_ms=service_ms, queue=queue))
        archive(store, name, HANDLER, config_file=str(config))
    running = start_server(
        tmp_path_factory.mktemp("server"),
        store,
        load_models="steady.mar,slow.mar,narrow.mar",
        fairness_header="x-tenant",
        max_live_request_bytes="1000000",
    )
    for name in ("steady", "slow", "narrow"):
        running.wait_ready(name)
    yield running
    assert running.stop() == 0, running.tail()


def names_that_ran(server: RunningServer, model: str) -> list[str]:
    return server.predict(model, b"?").text.split()


def is_idle_but_for_one(server: RunningServer, model: str, counted: float) -> bool:
    """Whether one more request than `counted` has come for `model`, and none waits."""
    return (
        server.requests_to(model) == counted + 1
        and not server.describe(model)["jobQueueStatus"]["pendingRequests"]
    )


def port_of(server: RunningServer) -> int:
    return int(server.inference.rpartition(":")[2])


def test_under_five_times_the_load_the_work_that_is_done_is_in_time(
    server: RunningServer,
) -> None:
    deadline_s = 0.4

    async def overload() -> tuple[float, Step]:
        path = "/predictions/steady"
        calm = Client(port_of(server), path)
        before = await calm.closed(2, 2.0)
        calm.close()
        capacity = len(before.served()) / before.seconds
        client = Client(port_of(server), path, x_request_timeout_ms=f"{deadline_s * 1000:.0f}")
        step = await client.open(5 * capacity, 4.0)
        client.close()
        return capacity, step

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        capacity, step = runner.run(overload())

    print(
        f"capacity {capacity:.0f}/s, asked for {step.sent / step.seconds:.0f}/s, "
        f"in time {step.goodput(deadline_s):.0f}/s; {dict(step.outcomes())}"
    )
    assert len(step.answers) == step.sent
    assert {answer.status for answer in step.answers} <= {200, 408, 503}
    refused = [answer for answer in step.answers if answer.status == 503]
    assert len(refused) > len(step.answers) / 2
    assert {answer.reason for answer in refused} <= {"deadline_unreachable", "queue_full"}
    assert all(int(answer.retry_after) >= 1 for answer in refused)
    assert step.goodput(deadline_s) > 0.5 * capacity
    ran = names_that_ran(server, "steady")
    assert len(set(ran)) == len(ran)
    assert not {answer.name for answer in refused} & set(ran)
    assert {answer.name for answer in step.served()} <= set(ran)


def test_serve_1322_a_request_whose_time_is_over_never_runs(server: RunningServer) -> None:
    """Nothing is known of the model's speed yet, so that they are let in and wait."""
    counted = server.requests_to("slow")
    with ThreadPoolExecutor(6) as clients:
        busy = clients.submit(server.predict, "slow", b"first")
        wait_until(
            lambda: is_idle_but_for_one(server, "slow", counted),
            what="the request that keeps it busy",
        )
        late = [
            clients.submit(
                requests.post,
                f"{server.inference}/predictions/slow",
                data=f"late{number}",
                headers={"X-Request-Timeout-Ms": "100"},
                timeout=60,
            )
            for number in range(4)
        ]
        answers = [future.result() for future in late]
        assert busy.result().status_code == 200
    assert [answer.status_code for answer in answers] == [408] * 4
    assert {answer.headers["x-error-reason"] for answer in answers} == {"deadline_exceeded"}
    assert names_that_ran(server, "slow") == ["first"]


def test_serve_2333_a_full_queue_says_why_and_when_to_come_again(server: RunningServer) -> None:
    url = f"{server.inference}/predictions/narrow"
    with ThreadPoolExecutor(8) as clients:
        began_s = time.monotonic()
        asked = [clients.submit(requests.post, url, data=f"n{n}", timeout=60) for n in range(8)]
        answers = [future.result() for future in asked]
        seconds = time.monotonic() - began_s
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(served) == 2, seconds
    for answer in refused:
        assert answer.status_code == 503
        assert "no worker to serve" in answer.json()["message"]
        assert answer.headers["x-error-reason"] == "queue_full"
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers["connection"] == "keep-alive"


def test_serve_3342_a_full_queue_is_no_internal_error_over_grpc(server: RunningServer) -> None:
    with grpc.insecure_channel(server.grpc_inference) as channel:
        stub = InferenceAPIsServiceStub(channel)
        calls = [
            stub.Predictions.future(
                PredictionsRequest(model_name="narrow", input={"data": f"g{n}".encode()})
            )
            for n in range(6)
        ]
        codes = Counter(call.code() for call in calls)
        refused = [call for call in calls if call.code() is grpc.StatusCode.UNAVAILABLE]
    assert codes == {grpc.StatusCode.OK: 2, grpc.StatusCode.UNAVAILABLE: 4}
    for call in refused:
        assert int(dict(call.trailing_metadata())["grpc-retry-pushback-ms"]) > 0


def test_all_models_together_hold_no_more_bytes_than_allowed(server: RunningServer) -> None:
    """Each of the two would fit; the second comes while the first runs."""
    body = b"a" * 600_000
    counted = server.requests_to("slow")
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(server.predict, "slow", body)
        wait_until(
            lambda: is_idle_but_for_one(server, "slow", counted), what="the first of the two"
        )
        refused = requests.post(f"{server.inference}/predictions/narrow", data=body, timeout=60)
        assert first.result().status_code == 200
    assert refused.status_code == 503
    assert refused.headers["x-error-reason"] == "too_many_bytes"
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["content-length"] == "0"  # refused at its head, not when it was read
    assert server.predict("narrow", b"a").status_code == 200


def test_serve_2791_a_tenant_s_flood_is_not_in_another_s_way(server: RunningServer) -> None:
    url = f"{server.inference}/predictions/steady"

    def ask(tenant: str, number: int) -> int:
        answer = requests.post(
            url, data=f"{tenant}{number}", headers={"X-Tenant": tenant}, timeout=60
        )
        return answer.status_code

    with ThreadPoolExecutor(32) as clients:
        flood = [clients.submit(ask, "flood", number) for number in range(30)]
        wait_until(
            lambda: server.describe("steady")["jobQueueStatus"]["pendingRequests"] > 15,
            what="a flood",
        )
        assert clients.submit(ask, "light", 0).result() == 200
        assert {future.result() for future in flood} == {200}
    ran = names_that_ran(server, "steady")
    assert len([name for name in ran[ran.index("light0") :] if name.startswith("flood")]) >= 10
