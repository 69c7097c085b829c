"""Workers behind launchers: torchrun with several processes of a worker, and that for CPUs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from serving import MODELS, RunningServer, archive, children_of, start_server, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("parallel")
    for kind in ("tp", "pp"):
        config = folder / f"{kind}.yaml"
        config.write_text(
            f"minWorkers: 1\nmaxWorkers: 1\ndeviceType: cpu\nparallelType: {kind}\n"
            "torchrun:\n  nproc-per-node: 2\n  monitor-interval: 1\n"
        )
        folder_of_kind = folder / kind
        folder_of_kind.mkdir()
        config = config.rename(folder_of_kind / "model-config.yaml")
        archive(store, kind, MODELS / "ranks.py", config_file=str(config))
    running = start_server(folder / "server", store)
    assert running.register("pp.mar").status_code == 200
    yield running
    running.stop_and_leave_nothing()


def test_tensor_parallel_ranks_work_together_and_one_answers(server: RunningServer) -> None:
    assert server.register("tp.mar").status_code == 200
    described = server.describe("tp")
    assert (described["parallelType"], described["parallelLevel"]) == ("tp", 2)
    for _ in range(3):
        pids = server.predict("tp", b"all").text.split()
        assert len(set(pids)) == 2
    # A rank that is lost takes the other with it; both come back, and the request is not lost.
    os.kill(int(pids[1]), signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(int(pids[0])), 30, "the end of the other rank")
    server.wait_ready("tp")
    again = server.predict("tp", b"all").text.split()
    assert len({*pids, *again}) == 4
    assert server.describe("tp")["workers"][0]["lastFailure"]["reason"].startswith("rank 1: ")
    gone = server.session.delete(f"{server.management}/models/tp", timeout=60)
    assert gone.status_code == 200
    wait_until(lambda: not any(map(psutil.pid_exists, map(int, again))), 30, "the end of both")


def test_only_the_first_rank_of_a_pipeline_is_asked(server: RunningServer) -> None:
    for _ in range(3):
        assert server.predict("pp", b"alone").text == "rank 0 of 2"


def test_a_killed_server_leaves_no_rank(server: RunningServer, tmp_path: Path) -> None:
    """They are torchrun's children, in sessions of their own; and the other server's are others."""
    running = start_server(tmp_path / "server", server.store)
    try:
        assert running.register("pp.mar").status_code == 200
        assert running.predict("pp", b"alone").text == "rank 0 of 2"
        processes = children_of(running.process.pid)
        assert len(processes) >= 3
    finally:
        running.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert server.predict("pp", b"alone").text == "rank 0 of 2"


def test_the_cpu_launcher_starts_workers(store: Path, tmp_path: Path) -> None:
    archive(store, "echo", MODELS / "echo.py")
    running = start_server(
        tmp_path / "server",
        store,
        cpu_launcher_enable="true",
        cpu_launcher_args=(
            "--disable-numactl --disable-taskset --disable-iomp --use-default-allocator"
        ),
    )
    try:
        assert running.register("echo.mar", initial_workers=1).status_code == 200
        assert running.predict("echo", b"x").content == b"x"
        (pid,) = running.worker_pids("echo")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: running.worker_pids("echo") not in ([pid], [-1]), 30, "another worker")
        running.wait_ready("echo")
    finally:
        running.stop_and_leave_nothing()
