"""Many requests at once in one worker (`asyncCommunication`), each with its own answer."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from serving import MODELS, RunningServer, archive, wait_until


@pytest.fixture(scope="module", autouse=True)
def model(store: Path, server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = tmp_path_factory.mktemp("config") / "model-config.yaml"
    # Run again one by one after a death, requests that have to meet would wait for ever.
    config.write_text(
        "minWorkers: 1\nmaxWorkers: 1\nasyncCommunication: true\nworkerDeathRetries: 0\n"
    )
    archive(store, "streams_async", MODELS / "streams_async.py", config_file=str(config))
    archive(store, "meets", MODELS / "meets.py", config_file=str(config))
    for name in ("streams_async", "meets"):
        answer = server.register(f"{name}.mar")
        assert answer.status_code == 200, answer.text


def test_streams_run_side_by_side(server: RunningServer) -> None:
    def ask(count: int) -> list[str]:
        with requests.post(
            f"{server.inference}/predictions/streams_async",
            data=str(count),
            stream=True,
            timeout=60,
        ) as answer:
            return [piece.decode() for piece in answer.iter_content(chunk_size=None)]

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, range(1, 9)))
    for count, pieces in enumerate(answers, 1):
        assert "".join(pieces) == "".join(f"chunk {n} " for n in range(count)) + "end"


def test_requests_meet_in_one_worker(server: RunningServer) -> None:
    """The handler answers only when five requests are with it at the same time."""
    with ThreadPoolExecutor(5) as clients:
        answers = list(
            clients.map(
                lambda number: (
                    requests.post(
                        f"{server.inference}/predictions/meets", data=str(number), timeout=60
                    ).text
                ),
                range(5),
            )
        )
    assert answers == ["0", "1", "2", "3", "4"]
    server.session.put(  # fresh workers for the next test: this one's event stays set
        f"{server.management}/models/meets?min_worker=0&synchronous=true", timeout=60
    )
    wait_until(lambda: not server.worker_pids("meets"), what="no worker")
    server.session.put(
        f"{server.management}/models/meets?min_worker=1&synchronous=true", timeout=60
    )


def test_a_death_answers_everybody(server: RunningServer) -> None:
    (pid,) = server.worker_pids("meets")

    def ask(number: int) -> int:
        return requests.post(
            f"{server.inference}/predictions/meets", data=str(number), timeout=60
        ).status_code

    before = server.requests_to("meets")
    with ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(ask, number) for number in range(3)]
        wait_until(
            lambda: (
                server.requests_to("meets") == before + 3
                and server.describe("meets")["jobQueueStatus"]["pendingRequests"] == 0
            ),
            what="the requests to reach the worker",
        )
        os.kill(pid, signal.SIGKILL)
        assert {answer.result() for answer in waiting} <= {500, 507}
