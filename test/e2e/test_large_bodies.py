"""Bodies of up to 6 MB through a real server: unchanged, whatever carries them, and nothing stays.

Large ones go to the worker and back through shared memory.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from serving import MODELS, RunningServer, archive, children_of, start_server, wait_until

SIZES = (1, 1000, 16_384, 65_535, 65_536, 65_537, 300_000, 1_048_576, 3_000_001, 6_000_000)

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="shared memory needs Linux")


def body_of(size: int, seed: int = 0) -> bytes:
    return random.Random(size * 100 + seed).randbytes(size)


@pytest.fixture(scope="module", autouse=True)
def models(store: Path, server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = tmp_path_factory.mktemp("config") / "model-config.yaml"
    config.write_text("minWorkers: 1\nmaxWorkers: 1\nasyncCommunication: true\n")
    archive(store, "echo", MODELS / "echo.py")
    archive(store, "two", MODELS / "echo.py")
    archive(store, "batched", MODELS / "echo.py")
    archive(store, "echo_async", MODELS / "echo_async.py", config_file=str(config))
    for name, options in (
        ("echo", {"initial_workers": 1}),
        ("two", {"initial_workers": 2}),
        ("batched", {"initial_workers": 1, "batch_size": 8, "max_batch_delay": 20}),
        ("echo_async", {}),
    ):
        answer = server.register(f"{name}.mar", **options)
        assert answer.status_code == 200, answer.text


def descriptors(server: RunningServer) -> list[str]:
    """What the frontend has open, clients left out."""
    folder = Path(f"/proc/{server.process.pid}/fd")
    found = []
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))
    return sorted(each.partition(":[")[0] for each in found)


def shared_maps(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("torchserve-bodies")


def shared_kilobytes(pid: int) -> int:
    """Pages of shared memory that the process has touched."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssShmem"))


def echo_all(inference: str, model: str, rounds: int = 3, threads: int = 8) -> None:
    def ask(number: int) -> None:
        source = random.Random(number)
        with requests.Session() as session:
            for turn in range(rounds):
                for size in source.sample(SIZES, len(SIZES)):
                    body = body_of(size, number + turn)
                    answer = session.post(f"{inference}/predictions/{model}", data=body, timeout=60)
                    assert answer.status_code == 200, answer.text[:300]
                    assert answer.content == body

    with ThreadPoolExecutor(threads) as clients:
        for _ in clients.map(ask, range(threads)):
            pass


@pytest.mark.parametrize("model", ["echo", "two", "batched", "echo_async"])
def test_every_size_comes_back_as_it_was(server: RunningServer, model: str) -> None:
    echo_all(server.inference, model)


@pytest.fixture
def other_server(
    request: pytest.FixtureRequest, store: Path, tmp_path: Path
) -> Iterator[RunningServer]:
    running = start_server(tmp_path / "server", store, load_models="echo.mar", **request.param)
    running.wait_ready("echo")
    yield running
    assert running.stop() == 0, running.tail()


@pytest.mark.parametrize(
    "other_server",
    [
        {"use_native_io": "false"},
        {"shared_memory_threshold": "0"},
        {"shared_memory_size": "1048576"},  # for one body at a time
        {"shared_memory_threshold": "1", "default_workers_per_model": "1"},
    ],
    indirect=True,
    ids=["tcp", "off", "short", "all"],
)
def test_other_roads_give_the_same(other_server: RunningServer) -> None:
    echo_all(other_server.inference, "echo", rounds=1, threads=4)


def test_a_large_file_in_a_form(server: RunningServer) -> None:
    file = body_of(3_000_001)
    answer = server.session.post(
        f"{server.inference}/predictions/echo",
        files={"data": ("f.bin", file), "more": ("g.bin", body_of(70_000))},
        timeout=60,
    )
    assert answer.status_code == 200
    assert answer.content == file


@needs_linux
def test_large_bodies_do_take_the_shared_memory(server: RunningServer) -> None:
    server.predict("echo", body_of(1_048_576))
    (worker,) = server.worker_pids("echo")
    assert shared_maps(worker) >= 2
    assert shared_maps(server.process.pid) >= 2


@needs_linux
def test_a_worker_that_is_killed_leaves_nothing_in_the_frontend(server: RunningServer) -> None:
    body = body_of(6_000_000)

    def ask(_: int) -> int:
        with contextlib.suppress(requests.RequestException):
            return requests.post(
                f"{server.inference}/predictions/echo", data=body, timeout=60
            ).status_code
        return 0

    def settled() -> tuple[list[str], int]:
        server.wait_ready("echo")
        assert server.predict("echo", b"1").content == b"1"
        # What is left is one memory for each worker's answers; bodies' go after some idle seconds.
        workers = len(children_of(server.process.pid))
        wait_until(
            lambda: shared_maps(server.process.pid) <= workers, timeout_s=30, what="free memory"
        )
        return descriptors(server), shared_maps(server.process.pid)

    before = settled()
    for _ in range(3):
        (worker,) = server.worker_pids("echo")
        with ThreadPoolExecutor(6) as clients:
            asking = clients.map(ask, range(12))
            wait_until(lambda worker=worker: shared_kilobytes(worker) > 1000, what="a body")
            os.kill(worker, signal.SIGKILL)
            list(asking)
        wait_until(lambda worker=worker: worker not in server.worker_pids("echo"), what="its death")
    assert settled() == before


@needs_linux
def test_idle_memory_goes_back_to_the_system(server: RunningServer) -> None:
    models = ("echo", "batched", "echo_async")
    for model in models:
        echo_all(server.inference, model, rounds=1, threads=4)
    processes = [server.process.pid, *(pid for name in models for pid in server.worker_pids(name))]
    for pid in processes:
        wait_until(lambda pid=pid: shared_kilobytes(pid) < 1000, what="memory to be free")


def connect(server: RunningServer) -> socket.socket:
    host, _, port = server.inference.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_clients_that_leave_in_the_middle_hurt_nobody(server: RunningServer) -> None:
    body = body_of(3_000_000)
    head = b"POST /predictions/echo HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(body)
    for part in (0, 1000, 1_000_000, 2_999_999, 3_000_000):
        for _ in range(3):
            with connect(server) as client:
                client.sendall(head + body[:part])
        assert server.predict("echo", body).content == body


def test_slow_readers_get_their_answers_and_hold_nobody_up(server: RunningServer) -> None:
    body = body_of(6_000_000)
    head = (
        b"POST /predictions/echo HTTP/1.1\r\nhost: h\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    )
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(60)]  # more than fits
        for client in slow:
            client.sendall(head + body)
        echo_all(server.inference, "echo", rounds=1, threads=2)
        for client in slow:
            with client.makefile("rb") as file:
                answer = file.read()
            assert answer.partition(b"\r\n\r\n")[2] == body
