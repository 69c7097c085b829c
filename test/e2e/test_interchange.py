"""The halves are interchangeable with TorchServe 0.12's: worker, frontend and archives, both ways.

Opt-in: needs a Python environment with `torchserve` and `torch-model-archiver` 0.12 from PyPI (and
Java):

    TORCHSERVE_PYTHON=<environment>/bin/python pytest -m torchserve test/e2e/test_interchange.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from serving import MODELS, ROOT, RunningServer, archive, start_server, wait_until
from their_server import find_home, free_port, start_their_server, stop_tree

pytestmark = [
    pytest.mark.torchserve,
    pytest.mark.skipif(
        "TORCHSERVE_PYTHON" not in os.environ, reason="TORCHSERVE_PYTHON is not set"
    ),
]
HANDLERS = ("echo", "streams", "fails_on_predict", "wrong_length", "context_probe", "ids")


@pytest.fixture(scope="module")
def their_python() -> Path:
    return Path(os.environ["TORCHSERVE_PYTHON"])


@pytest.fixture(scope="module")
def their_home(their_python: Path) -> str:
    return find_home(their_python)


@pytest.fixture(scope="module")
def filled_store(store: Path) -> Path:
    for name in HANDLERS:
        archive(store, name, MODELS / f"{name}.py")
    return store


def check_answers(inference: str) -> None:
    """What both mixed pairs must do, as the clients of either see it."""
    session = requests.Session()

    def ask(model: str, data: object, **options: object) -> requests.Response:
        return session.post(f"{inference}/predictions/{model}", data=data, timeout=60, **options)

    assert ask("echo", b"hello").content == b"hello"
    assert session.post(f"{inference}/predictions/ids", json={"id": "a"}, timeout=60).text == "a"
    uploaded = session.post(f"{inference}/predictions/echo", files={"data": b"\0\1"}, timeout=60)
    assert uploaded.content == b"\0\1"
    big = os.urandom(1_000_000)
    assert ask("echo", big).content == big
    failed = ask("fails_on_predict", b"x")
    assert failed.json() == {
        "code": 503,
        "type": "InternalServerException",
        "message": "Prediction failed",
    }
    assert ask("wrong_length", b"x").json()["message"] == "number of batch response mismatched"
    probe = session.post(f"{inference}/explanations/context_probe", data=b"x", timeout=60)
    assert probe.headers["content-type"] == "application/json"
    assert probe.json()["headers"]["explain"] == "True"
    with ask("streams", "3", stream=True) as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert len(list(answer.iter_content(chunk_size=None))) == 4


@pytest.fixture
def mixed(
    filled_store: Path, tmp_path: Path, their_python: Path, their_home: str
) -> Iterator[RunningServer]:
    environment_paths = os.environ.pop("PYTHONPATH", None)
    running = start_server(
        tmp_path / "server",
        filled_store,
        # Their worker must find their `ts`, so ours may not come to it through PYTHONPATH.
        through_environment=False,
        python=str(their_python),
        model_server_home=their_home,
        metrics_config=str(ROOT / "ts" / "configs" / "metrics.yaml"),
    )
    if environment_paths is not None:
        os.environ["PYTHONPATH"] = environment_paths
    yield running
    assert running.stop() == 0


def test_their_worker_answers_behind_our_frontend(mixed: RunningServer, their_home: str) -> None:
    for name in HANDLERS:
        answer = mixed.register(f"{name}.mar", initial_workers=1)
        assert answer.status_code == 200, mixed.tail()
    command = psutil.Process(mixed.worker_pids("echo")[0]).cmdline()
    assert any(part.startswith(their_home) for part in command)
    check_answers(mixed.inference)


def test_our_worker_answers_behind_their_frontend(
    filled_store: Path, tmp_path: Path, their_home: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "ts").symlink_to(ROOT / "ts")
    theirs = start_their_server(
        *(tmp_path / "server", filled_store, their_home, HANDLERS),
        home=str(home),
        python=sys.executable,
    )
    try:
        workers = [
            child.cmdline()
            for child in psutil.Process(theirs.process.pid).children(recursive=True)
            if any("model_service_worker" in part for part in child.cmdline())
        ]
        assert len(workers) == len(HANDLERS)
        assert all(command[0] == sys.executable for command in workers), workers
        check_answers(theirs.inference)
    finally:
        theirs.stop()


def test_our_archives_load_in_theirs(
    filled_store: Path, tmp_path: Path, their_home: str, their_python: Path
) -> None:
    theirs = start_their_server(
        *(tmp_path / "server", filled_store, their_home, HANDLERS),
        home=their_home,
        python=str(their_python),
    )
    try:
        check_answers(theirs.inference)
    finally:
        theirs.stop()


def test_their_archives_load_in_ours(tmp_path: Path, their_python: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    formats = {"default": "d.mar", "tgz": "t.tar.gz", "no-archive": "n"}
    for format_name, file_name in formats.items():
        name = file_name.partition(".")[0]
        subprocess.run(
            [
                str(their_python.parent / "torch-model-archiver"),
                *("--model-name", name, "--version", "1.0", "--handler", str(MODELS / "echo.py")),
                *("--export-path", str(store), "--archive-format", format_name),
            ],
            check=True,
            cwd=tmp_path,
        )
    running = start_server(tmp_path / "server", store)
    try:
        for file_name in formats.values():
            name = file_name.partition(".")[0]
            answer = running.register(file_name, initial_workers=1)
            assert answer.status_code == 200, answer.text
            assert running.predict(name, b"x").content == b"x"
    finally:
        assert running.stop() == 0


def test_the_archivers_agree(tmp_path: Path, their_python: Path) -> None:
    ours = archive(tmp_path / "ours", "echo", MODELS / "echo.py")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run(
        [
            str(their_python.parent / "torch-model-archiver"),
            *("--model-name", "echo", "--version", "1.0", "--handler", str(MODELS / "echo.py")),
            *("--export-path", str(theirs)),
        ],
        check=True,
        cwd=tmp_path,
    )
    with zipfile.ZipFile(ours) as one, zipfile.ZipFile(theirs / "echo.mar") as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
    shutil.rmtree(tmp_path / "ours")


# --- snapshots ------------------------------------------------------------------------------------


def newest_snapshot(folder: Path) -> Path:
    return max((folder / "logs" / "config").glob("*.cfg"))


def addresses() -> dict[str, str]:
    ports = [free_port() for _ in range(5)]
    return {
        "inference_address": f"http://127.0.0.1:{ports[0]}",
        "management_address": f"http://127.0.0.1:{ports[1]}",
        "metrics_address": f"http://127.0.0.1:{ports[2]}",
        "grpc_inference_port": str(ports[3]),
        "grpc_management_port": str(ports[4]),
    }


def start_theirs(folder: Path, store: Path, their_python: Path, their_home: str, *flags: str):
    """TorchServe's Java frontend with its own workers, in `folder`."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TEMP": str(folder / "tmp"), "TMPDIR": str(folder / "tmp")}
    environment.pop("PYTHONPATH", None)
    command = ["java", f"-Dmodel_server_home={their_home}", f"-Djava.io.tmpdir={folder / 'tmp'}"]
    command += ["-cp", f".:{their_home}/ts/frontend/*", "org.pytorch.serve.ModelServer"]
    command += ["--python", str(their_python), "-s", str(store), "--disable-token-auth", *flags]
    with (folder / "server.log").open("wb") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)


def ready_workers(management: str, model: str) -> int:
    try:
        described = requests.get(f"{management}/models/{model}", timeout=5).json()
    except requests.RequestException:
        return -1
    if not isinstance(described, list):
        return -1
    return [worker["status"] for worker in described[0]["workers"]].count("READY")


def test_their_frontend_goes_on_from_our_snapshot(
    filled_store: Path, tmp_path: Path, their_python: Path, their_home: str
) -> None:
    places = addresses()
    ours = start_server(tmp_path / "ours", filled_store, has_snapshots=True, **places)
    assert ours.register("echo.mar", initial_workers=2, batch_size=3).status_code == 200
    assert ours.register("ids.mar").status_code == 200
    assert ours.stop() == 0
    snapshot = newest_snapshot(ours.folder)
    process = start_theirs(
        tmp_path / "theirs", filled_store, their_python, their_home, "-f", str(snapshot), "-ncs"
    )
    try:
        management = places["management_address"]
        wait_until(
            lambda: ready_workers(management, "echo") == 2,
            120,
            f"TorchServe; its log: {tmp_path / 'theirs' / 'server.log'}",
        )
        (described,) = requests.get(f"{management}/models/echo", timeout=20).json()
        assert described["batchSize"] == 3
        assert ready_workers(management, "ids") == 0
        inference = places["inference_address"]
        answer = requests.post(f"{inference}/predictions/echo", data=b"x", timeout=60)
        assert answer.content == b"x"
    finally:
        stop_tree(process)


def test_our_frontend_goes_on_from_their_snapshot(
    filled_store: Path, tmp_path: Path, their_python: Path, their_home: str
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    places = addresses()
    config = folder / "start.properties"
    lines = {**places, "default_workers_per_model": "2", "enable_model_api": "true"}
    config.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    process = start_theirs(
        folder, filled_store, their_python, their_home, "-f", str(config), "-m", "echo=echo.mar"
    )
    try:
        management = places["management_address"]
        wait_until(lambda: ready_workers(management, "echo") == 2, 120, f"{folder / 'server.log'}")
        assert requests.post(f"{management}/models?url=ids.mar", timeout=60).status_code == 200
        wait_until(lambda: b"ids" in newest_snapshot(folder).read_bytes(), 20, "their snapshot")
    finally:
        stop_tree(process)
    ours = start_server(folder, filled_store, goes_on=True)
    try:
        assert ours.management == places["management_address"]
        ours.wait_ready("echo", 2)
        assert ours.predict("echo", b"x").content == b"x"
        ours.wait_ready("ids", 2)
    finally:
        assert ours.stop() == 0
