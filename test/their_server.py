"""TorchServe 0.12 of PyPI on loopback, for the opt-in tests that compare with it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from serving import ROOT, RunningServer, start_server, wait_until


def find_home(python: Path) -> str:
    """The folder of the package `ts` that this interpreter imports."""
    found = subprocess.run(
        [python, "-c", "import importlib.util as u; print(u.find_spec('ts').origin)"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    return str(Path(found.stdout.strip()).parents[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class TheirServer:
    process: subprocess.Popen[bytes]
    inference: str
    management: str
    folder: Path

    def stop(self) -> None:
        stop_tree(self.process)


def stop_tree(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it has started."""
    tree = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(True))]
    members = [psutil.Process(pid) for pid in tree if psutil.pid_exists(pid)]
    for member in members:
        member.terminate()
    _, alive = psutil.wait_procs(members, timeout=20)
    for member in alive:
        member.kill()
    process.wait(20)


def start_their_server(
    folder: Path,
    store: Path,
    their_home: str,
    models: Sequence[str],
    *,
    home: str,
    python: str,
    **keys: str,
) -> TheirServer:
    """TorchServe's Java frontend with the workers of `home`, all models loaded and ready.

    Started without its launcher, which would always choose its own home and interpreter.
    keys: more lines of its config.properties.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ports = [free_port() for _ in range(5)]
    lines = {
        "inference_address": f"http://127.0.0.1:{ports[0]}",
        "management_address": f"http://127.0.0.1:{ports[1]}",
        "metrics_address": f"http://127.0.0.1:{ports[2]}",
        "grpc_inference_port": str(ports[3]),
        "grpc_management_port": str(ports[4]),
        "default_workers_per_model": "1",
        "metrics_config": str(ROOT / "ts" / "configs" / "metrics.yaml"),
        **keys,
    }
    config = folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    (folder / "tmp").mkdir()
    environment = {**os.environ, "TEMP": str(folder / "tmp"), "TMPDIR": str(folder / "tmp")}
    environment.pop("PYTHONPATH", None)
    command = ["java", f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={folder / 'tmp'}"]
    command += ["-cp", f".:{their_home}/ts/frontend/*", "org.pytorch.serve.ModelServer"]
    command += ["--python", python, "-f", str(config), "-s", str(store), "-ncs"]
    command += ["--disable-token-auth", "-m", *(f"{name}={name}.mar" for name in models)]
    with (folder / "server.log").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output
        )
    management = f"http://127.0.0.1:{ports[1]}"

    def has_ready_workers() -> bool:
        try:
            listed = requests.get(f"{management}/models", timeout=5).json()["models"]
            described = [
                requests.get(f"{management}/models/{model['modelName']}", timeout=5).json()[0]
                for model in listed
            ]
        except requests.RequestException:
            return False
        return len(described) == len(models) and all(
            worker["status"] == "READY" for model in described for worker in model["workers"]
        )

    server = TheirServer(process, f"http://127.0.0.1:{ports[0]}", management, folder)
    try:
        wait_until(has_ready_workers, 120, f"TorchServe; its log: {folder / 'server.log'}")
    except BaseException:
        server.stop()
        raise
    return server


def start_both(
    folder: Path, store: Path, python: Path, models: tuple[str, ...], **keys: str
) -> tuple[RunningServer, TheirServer]:
    """Our server and theirs with the same archives and configuration, all models loaded."""
    home = find_home(python)
    theirs = start_their_server(
        *(folder / "theirs", store, home, models), home=home, python=str(python), **keys
    )
    try:
        ours = start_server(folder / "ours", store, default_workers_per_model=1, **keys)
    except BaseException:
        theirs.stop()
        raise
    for name in models:
        assert ours.register(f"{name}.mar", initial_workers=1).status_code == 200, ours.tail()
    return ours, theirs
