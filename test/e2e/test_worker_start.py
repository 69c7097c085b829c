"""Workers that are forked from a zygote: all that can be seen of them is as of spawned ones."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving import MODELS, RunningServer, archive, children_of, start_server, wait_until

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="workers are forked on Linux only"
)

START = {"workerStart": "fork", "minWorkers": 1, "maxWorkers": 1}


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The server spawns; its model `forked` is forked, its model `spawned` is not."""
    folder = tmp_path_factory.mktemp("start")
    running = start_server(
        folder, store, variables={"OF_THE_SERVER": "Käse", "OMP_NUM_THREADS": "2"}
    )
    for name, start in (("forked", "fork"), ("spawned", "spawn")):
        register(running, name, workerStart=start)
    yield running
    running.stop_and_leave_nothing()


def register(
    server: RunningServer, name: str, model: str = "process_probe", files: str = "", **keys: object
) -> None:
    config = server.folder / f"{name}.yaml"
    values = {**START, **keys}
    config.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    more = {"extra_files": files} if files else {}
    archive(server.store, name, MODELS / f"{model}.py", config_file=str(config), **more)
    answer = server.register(f"{name}.mar")
    assert answer.status_code == 200, answer.text


def look(server: RunningServer, name: str) -> dict[str, Any]:
    answer = server.predict(name, b"look")
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text)


def zygotes(server: RunningServer) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.Error):  # it ends while we look
            if any("worker_zygote" in argument for argument in process.cmdline()):
                found.append(process)
    return found


def is_forked(server: RunningServer, pid: int) -> bool:
    return psutil.Process(pid).ppid() in [zygote.pid for zygote in zygotes(server)]


def comparable(seen: dict[str, Any], name: str) -> dict[str, Any]:
    """Without what differs between any two workers: their sockets, their folders."""
    text = json.dumps({key: value for key, value in seen.items() if key != "differs"})
    text = re.sub(r"\.ts\.sock\.\d+", "SOCKET", text.replace(seen["cwd"], "FOLDER"))
    return json.loads(text)


def test_a_forked_worker_looks_like_a_spawned_one(server: RunningServer) -> None:
    forked, spawned = look(server, "forked"), look(server, "spawned")
    assert is_forked(server, forked["differs"]["pid"])
    assert not is_forked(server, spawned["differs"]["pid"])
    assert forked["differs"]["is_torch_old"]
    assert not spawned["differs"]["is_torch_old"]
    # The only variable that is missing: a forked worker's parent is not the one that it ends with.
    assert spawned["environ"].pop("TS_WORKER_DIE_WITH_PARENT") == str(server.process.pid)
    assert forked["environ"]["OF_THE_SERVER"] == "Käse"
    seen, wanted = comparable(forked, "forked"), comparable(spawned, "spawned")
    assert seen == wanted


def test_forked_workers_draw_different_numbers(server: RunningServer) -> None:
    register(server, "draws", minWorkers=1, maxWorkers=1)
    first, second = look(server, "forked")["differs"], look(server, "draws")["differs"]
    for name in ("random", "numpy", "torch", "key"):
        assert first[name] != second[name], name


def test_threads_of_libraries_work_in_a_forked_worker(server: RunningServer) -> None:
    assert server.predict("forked", b"sum").text == str(400**3)
    assert server.predict("spawned", b"sum").text == str(400**3)


def test_what_it_prints_arrives_in_the_log(server: RunningServer) -> None:
    assert server.predict("forked", "say ümläut".encode()).status_code == 200
    wait_until(lambda: "err ümläut" in server.log.read_text(), what="the line")
    text = server.log.read_text()
    assert re.search(r"\[INFO \] W-\d+-forked_1.0-stdout MODEL_LOG - out ümläut", text)
    assert re.search(r"\[WARN \] W-\d+-forked_1.0-stderr MODEL_LOG - err ümläut", text)


@pytest.mark.parametrize(
    ("body", "cause"),
    [("exit 3", "exit code 3"), ("kill 11", "ended by signal 11"), ("kill 9", "ended by signal 9")],
)
def test_how_it_ended_is_known(server: RunningServer, body: str, cause: str) -> None:
    name = f"ends_{body.replace(' ', '_')}"
    register(server, name, idempotent="false")
    assert is_forked(server, server.worker_pids(name)[0])
    assert server.predict(name, body.encode()).status_code in (500, 507)
    wait_until(
        lambda: server.metric("ts_worker_restarts_total", name, cause=cause) == 1,
        what=f"a death by {cause}; the log:\n{server.tail()}",
    )
    server.wait_ready(name)
    assert server.predict(name, b"alive").text == "alive"
    assert is_forked(server, server.worker_pids(name)[0])


def test_an_archive_with_modules_of_its_own_gets_a_fresh_interpreter(
    server: RunningServer, tmp_path: Path
) -> None:
    """The zygote has another `yaml`, which would win."""
    own = tmp_path / "yaml.py"
    own.write_text("raise ImportError('the yaml of the archive')\n")
    handler = tmp_path / "reads_yaml.py"
    handler.write_text(
        "def handle(data, context):\n"
        "    if data is None:\n        return None\n"
        "    try:\n        import yaml\n"
        "    except ImportError as error:\n        return [str(error)] * len(data)\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text("workerStart: fork\nminWorkers: 1\nmaxWorkers: 1\n")
    archive(server.store, "shadows", handler, extra_files=str(own), config_file=str(config))
    # What the worker itself needs of yaml it cannot have either, as when it is spawned.
    answer = server.register("shadows.mar", startup_timeout="20")
    assert answer.status_code == 500, answer.text
    assert "Starting a fresh interpreter, for the sake of" in server.log.read_text()
    assert "the yaml of the archive" in server.log.read_text()
    server.session.delete(f"{server.management}/models/shadows", timeout=60)


def test_workers_survive_the_zygote(server: RunningServer) -> None:
    register(server, "outlives", idempotent="false")
    (pid,) = server.worker_pids("outlives")
    (zygote,) = zygotes(server)
    zygote.kill()
    wait_until(lambda: not zygotes(server), what="the end of the zygote")
    assert server.predict("outlives", b"still there").text == "still there"
    assert server.worker_pids("outlives") == [pid]
    # Its end is seen all the same, and the next worker comes from a new zygote.
    assert server.predict("outlives", b"exit 4").status_code == 500
    server.wait_ready("outlives")
    assert server.predict("outlives", b"back").text == "back"
    (new_pid,) = server.worker_pids("outlives")
    assert is_forked(server, new_pid)
    assert new_pid != pid
    assert zygotes(server)[0].pid != zygote.pid


def test_scaling_leaves_neither_zombies_nor_descriptors(server: RunningServer) -> None:
    register(server, "scales", maxWorkers=3)
    (zygote,) = zygotes(server)

    def scale(workers: int) -> None:
        answer = server.session.put(
            f"{server.management}/models/scales",
            params={"min_worker": workers, "max_worker": workers, "synchronous": "true"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        wait_until(lambda: len(server.worker_pids("scales")) == workers, what="the scale")

    def descriptors() -> tuple[int, int]:
        return zygote.num_fds(), psutil.Process(server.process.pid).num_fds()

    scale(3)
    scale(1)
    wait_until(lambda: len(children_of_zygote(zygote)) == len(forked_models(server)), what="rest")
    before = descriptors()
    for _ in range(10):
        scale(3)
        scale(1)
    wait_until(lambda: descriptors() == before, what=f"{before}, not {descriptors()}")
    assert psutil.STATUS_ZOMBIE not in [child.status() for child in children_of_zygote(zygote)]
    assert len(children_of_zygote(zygote)) == len(forked_models(server))


def children_of_zygote(zygote: psutil.Process) -> list[psutil.Process]:
    return zygote.children()


def forked_models(server: RunningServer) -> list[int]:
    """The workers that the present zygote has forked."""
    listing = server.session.get(f"{server.management}/models", timeout=20).json()["models"]
    pids = [pid for model in listing for pid in server.worker_pids(model["modelName"])]
    return [pid for pid in pids if is_forked(server, pid)]


@pytest.fixture
def start(store: Path, tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """start(**settings): a server whose default is to fork, with one worker of `probe`."""
    servers = []

    def start(**keys: object) -> RunningServer:
        running = start_server(tmp_path / "server", store, worker_start="fork", **keys)
        servers.append(running)
        archive(store, "probe", MODELS / "process_probe.py")
        answer = running.register("probe.mar", initial_workers=2, synchronous="true")
        assert answer.status_code == 200, answer.text
        return running

    yield start
    for running in servers:
        assert running.stop() in (0, -9), running.tail()
        running.session.close()


def test_nothing_outlives_a_killed_server(start: Callable[..., RunningServer]) -> None:
    server = start()
    processes = children_of(server.process.pid)
    assert len(processes) == 3, "a zygote and two workers"
    (zygote,) = zygotes(server)
    # One that is stopped hears of nothing; the kernel ends it all the same.
    os.kill(server.worker_pids("probe")[0], signal.SIGSTOP)
    server.process.kill()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    assert not zygote.is_running()


def test_workers_without_a_zygote_end_with_the_server(start: Callable[..., RunningServer]) -> None:
    server = start()
    workers = [psutil.Process(pid) for pid in server.worker_pids("probe")]
    zygotes(server)[0].kill()
    wait_until(lambda: not zygotes(server), what="the end of the zygote")
    assert server.predict("probe", b"alive").text == "alive"
    server.process.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
