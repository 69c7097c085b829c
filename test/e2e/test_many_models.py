"""Many models in little memory, workers that follow the load, packages of a model's own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving import MODELS, RunningServer, archive, children_of, start_server, wait_until
from wheels import make_wheel

WEIGHT_MB = 60
MODEL_COUNT = 8
ONE_WORKER = "minWorkers: 1\nmaxWorkers: 1\n"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@contextmanager
def serving(folder: Path, store: Path, **keys: object) -> Iterator[RunningServer]:
    running = start_server(folder, store, **keys)
    try:
        yield running
    finally:
        running.stop_and_leave_nothing()


def pack(
    store: Path, folder: Path, name: str, handler: str, config: str = "", **files: str
) -> Path:
    folder = folder / f"pack_{name}"
    folder.mkdir()
    more: dict[str, Any] = {}
    if config:
        (folder / "model-config.yaml").write_text(config)
        more["config_file"] = str(folder / "model-config.yaml")
    for file, text in files.items():
        (folder / file).write_text(text)
    if files:
        more["extra_files"] = ",".join(str(folder / file) for file in files)
    return archive(store, name, MODELS / handler, **more)


def residency(server: RunningServer, name: str) -> dict[str, Any]:
    found = server.describe(name)["residency"]
    assert isinstance(found, dict)
    return found


def test_serve_1769_a_lazy_model_is_loaded_once_for_all_who_ask_first(
    tmp_path: Path, store: Path
) -> None:
    pack(store, tmp_path, "lazy", "echo.py", "load: lazy\nidleUnloadInSec: 1\n")
    with serving(tmp_path / "server", store, load_models="lazy.mar") as server:
        assert server.describe("lazy")["workers"] == []
        assert residency(server, "lazy")["state"] == "unloaded"
        for address in ("/ping", "/health/ready"):
            assert server.session.get(server.inference + address, timeout=20).status_code == 200
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda n: server.predict("lazy", b"%d" % n), range(8)))
        assert [answer.text for answer in answers] == [str(n) for n in range(8)]
        wait_until(lambda: residency(server, "lazy")["loads"] == 1, what="the load's end")
        wait_until(lambda: residency(server, "lazy")["state"] == "unloaded", what="it to go")
        wait_until(lambda: not children_of(server.process.pid), what="its worker to end")
        assert server.predict("lazy", b"again").text == "again"
        wait_until(lambda: residency(server, "lazy")["loads"] == 2, what="the load's end")


def test_a_registered_lazy_model_says_so_and_a_failed_load_says_why(
    tmp_path: Path, store: Path
) -> None:
    pack(store, tmp_path, "sound", "echo.py")
    pack(store, tmp_path, "broken", "fails_on_import.py")
    pack(store, tmp_path, "eager", "echo.py", "load: eager\n")
    with serving(tmp_path / "server", store, lazy_loading="true") as server:
        answer = server.register("sound.mar")
        assert answer.status_code == 200
        assert "its first request loads it" in answer.json()["status"]
        assert server.predict("sound", b"x").text == "x"
        server.register("eager.mar", initial_workers=1)
        assert "residency" not in server.describe("eager")
        server.register("broken.mar")
        refused = server.predict("broken", b"x")
        assert refused.status_code == 503
        assert "a_package_that_nobody_has" in refused.text
        assert refused.headers["x-error-reason"] == "load_failed"
        wait_until(lambda: residency(server, "broken")["state"] == "failed", what="the end")
        assert "a_package_that_nobody_has" in str(server.describe("broken")["unhealthyReason"])
        ready = server.session.get(f"{server.inference}/health/ready", timeout=20)
        assert ready.status_code == 503
        assert [item["modelName"] for item in ready.json()["models"]] == ["broken"]


def test_triton_7279_many_models_share_a_budget(tmp_path: Path, store: Path) -> None:
    names = [f"weighs{number}" for number in range(MODEL_COUNT)]
    for name in names:
        pack(store, tmp_path, name, "weighs.py", ONE_WORKER, weight=str(WEIGHT_MB))
    budget_mb = 3 * (WEIGHT_MB + 40)
    keys = {"lazy_loading": "true", "model_memory_budget": f"{budget_mb}MB"}
    with serving(tmp_path / "server", store, load_models="all", **keys) as server:
        peak = PeakMemory(server.process.pid)
        chance = random.Random(3)
        with peak, ThreadPoolExecutor(4) as clients:
            # Few are asked for often, many seldom.
            order = [names[int(MODEL_COUNT * chance.random() ** 3)] for _ in range(60)] + names
            answers = list(clients.map(lambda name: server.predict(name, name.encode()), order))
        assert [answer.text for answer in answers] == order
        assert peak.megabytes <= budget_mb * 1.1, peak.megabytes
        states = [residency(server, name) for name in names]
        assert sum(state["loads"] for state in states) >= MODEL_COUNT
        assert all(
            state["memoryUsage"] > WEIGHT_MB << 20 for state in states if state["state"] == "loaded"
        )


class PeakMemory:
    """The most that the children of a process have occupied together meanwhile."""

    def __init__(self, pid: int) -> None:
        self.megabytes = 0.0
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._is_over.wait(0.02):
            used = 0
            for child in children_of(self._pid):
                try:
                    used += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.megabytes = max(self.megabytes, used / (1 << 20))

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def test_serve_3339_workers_follow_the_load(tmp_path: Path, store: Path) -> None:
    config = "minWorkers: 1\nmaxWorkers: 3\nautoscaleWait: 50\nautoscaleIdleInSec: 1\n"
    pack(store, tmp_path, "sleeps", "sleeps.py", config)
    keys = {"autoscale_interval": "0.1"}
    with serving(tmp_path / "server", store, load_models="sleeps.mar", **keys) as server:
        server.wait_ready("sleeps")
        is_over = threading.Event()

        def ask(_: int) -> set[int]:
            statuses = set()
            while not is_over.is_set():
                statuses.add(server.predict("sleeps", b"0.2").status_code)
            return statuses

        with ThreadPoolExecutor(4) as clients:
            running = clients.map(ask, range(4))
            try:
                wait_until(lambda: len(server.worker_pids("sleeps")) == 3, what="three workers")
                server.wait_ready("sleeps", 3)
            finally:
                is_over.set()
            assert set().union(*running) == {200}
        wait_until(lambda: len(server.worker_pids("sleeps")) == 1, what="one worker again")
        described = server.describe("sleeps")
        assert (described["minWorkers"], described["maxWorkers"]) == (1, 3)
        assert server.predict("sleeps", b"0").status_code == 200


def test_equal_numbers_and_torchserves_way_keep_the_number(tmp_path: Path, store: Path) -> None:
    pack(store, tmp_path, "kept", "sleeps.py", "minWorkers: 1\nmaxWorkers: 3\n")
    keys = {"autoscale_interval": "0.02", "autoscale_wait": 1, "compatibility": "torchserve"}
    with serving(tmp_path / "server", store, load_models="kept.mar", **keys) as server:
        server.wait_ready("kept")
        with ThreadPoolExecutor(6) as clients:
            answers = list(clients.map(lambda _: server.predict("kept", b"0.1"), range(12)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(server.worker_pids("kept")) == 1


# Packages of a model's own.


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "2.0"):
        make_wheel(folder, "tinything", version, f"VALUE = {version!r}\n")
    return folder


def pack_needy(store: Path, folder: Path, name: str, version: str, config: str = "") -> None:
    place = folder / f"needy_{name}"
    place.mkdir()
    (place / "requirements.txt").write_text(f"tinything=={version}\n")
    (place / "model-config.yaml").write_text(config or "minWorkers: 1\nmaxWorkers: 1\n")
    archive(
        store,
        name,
        MODELS / "confined.py",
        requirements_file=str(place / "requirements.txt"),
        config_file=str(place / "model-config.yaml"),
    )


def test_serve_2826_models_with_other_versions_of_a_package_stand_side_by_side(
    tmp_path: Path, store: Path, wheels: Path
) -> None:
    pack_needy(store, tmp_path, "old", "1.0")
    pack_needy(store, tmp_path, "new", "2.0")
    pack_needy(store, tmp_path, "alike", "2.0")
    pack_needy(store, tmp_path, "venv", "1.0", "useVenv: true\n")
    pack_needy(store, tmp_path, "impossible", "9.9")
    keys = {
        "install_py_dep_per_model": "true",
        "environment_cache": tmp_path / "cache",
        "pip_options": f"--no-index --find-links {wheels}",
    }
    with serving(tmp_path / "server", store, **keys) as server:
        for name, version in (("old", "1.0"), ("new", "2.0"), ("alike", "2.0"), ("venv", "1.0")):
            answer = server.register(f"{name}.mar", initial_workers=1)
            assert answer.status_code == 200, answer.text
            assert server.predict(name, b"use tinything").json() == version
        assert server.log.read_text().count("Successfully installed tinything-2.0") == 1
        refused = server.register("impossible.mar", initial_workers=1)
        assert refused.status_code == 400
        assert "No matching distribution found for tinything==9.9" in refused.text
        listed = server.session.get(f"{server.management}/models", timeout=20).json()["models"]
        assert "impossible" not in {model["modelName"] for model in listed}
        (worker,) = server.worker_pids("venv")
        assert str(tmp_path / "cache") in psutil.Process(worker).cmdline()[0]
    with serving(tmp_path / "server2", store, **keys) as server:
        began_s = time.monotonic()
        assert server.register("venv.mar", initial_workers=1).status_code == 200
        assert time.monotonic() - began_s < 20
        assert "Installing" not in server.log.read_text()


def test_without_the_setting_nothing_is_installed(
    tmp_path: Path, store: Path, wheels: Path
) -> None:
    pack_needy(store, tmp_path, "plain", "1.0")
    with serving(tmp_path / "server", store) as server:
        assert server.register("plain.mar").status_code == 200
        assert server.predict("plain", b"use tinything").status_code >= 500
