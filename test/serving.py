"""A real server with real workers on loopback, on ports that the system chose: for tests and no
more.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import requests

from model_archiver import ModelArchiver, ModelArchiverConfig

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "test" / "models"
DIGITS = ROOT / "examples" / "image_classifier" / "mnist"
SOURCE_PATHS = [str(ROOT / "frontend"), str(ROOT / "model-archiver"), str(ROOT)]
START_TIMEOUT_S = 60


def wait_until(
    condition: Callable[[], object], timeout_s: float = 20, what: str = "condition"
) -> None:
    """Poll `condition` until it holds; fails with `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    tick = select.poll()
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        tick.poll(20)


def archive(
    store: Path, name: str, handler: str | Path, *, version: str = "1.0", **more: object
) -> Path:
    """`<store>/<file>.mar` made by the project's own archiver; returns its path."""
    file_name = str(more.pop("file_name", name))
    making = store / ".making"  # hidden: no model of `load_models=all`
    making.mkdir(parents=True, exist_ok=True)
    config = ModelArchiverConfig(
        model_name=name,
        handler=str(handler),
        version=version,
        export_path=str(making),
        force=True,
        **more,
    )
    ModelArchiver.generate_model_archive(config)
    made = (making / f"{name}.mar").rename(store / f"{file_name}.mar")
    return made


def archive_digits(store: Path, **more: object) -> Path:
    """The classifier of handwritten digits of the examples, as `digits.mar`."""
    return archive(
        store,
        "digits",
        DIGITS / "mnist_handler.py",
        model_file=str(DIGITS / "mnist.py"),
        serialized_file=str(DIGITS / "digits_cnn.pt"),
        extra_files=str(DIGITS / "index_to_name.json"),
        **more,
    )


@dataclass
class RunningServer:
    process: subprocess.Popen[bytes]
    inference: str
    management: str
    metrics: str
    store: Path
    folder: Path
    log: Path
    grpc_inference: str = ""
    grpc_management: str = ""
    session: requests.Session = field(default_factory=requests.Session)

    def stop_and_leave_nothing(self) -> None:
        """Stop it; fails if it ends badly or a process of its is left."""
        processes = children_of(self.process.pid)
        assert self.stop() == 0, self.tail()
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert not alive, f"left running: {alive}"

    def predict(self, model: str, data: object = b"", **options: object) -> requests.Response:
        return self.session.post(
            f"{self.inference}/predictions/{model}", data=data, timeout=60, **options
        )

    def register(self, url: str, **parameters: object) -> requests.Response:
        return self.session.post(
            f"{self.management}/models", params={"url": url, **parameters}, timeout=120
        )

    def describe(self, model: str) -> dict[str, object]:
        answer = self.session.get(f"{self.management}/models/{model}", timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.json()[0]

    def worker_pids(self, model: str) -> list[int]:
        return [worker["pid"] for worker in self.describe(model)["workers"]]

    def metric(self, name: str, model: str, **labels: str) -> float:
        """The sum over the series of `name` that carry the model's name and `labels`."""
        text = self.session.get(f"{self.metrics}/metrics", timeout=20).text
        wanted = {f'{label}="{value}"' for label, value in {"model_name": model, **labels}.items()}
        series = re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
        return sum(float(value) for found, value in series if wanted <= set(found.split(",")))

    def requests_to(self, model: str) -> float:
        """How many requests for `model` were let in; one is counted in the step that lets it in."""
        return self.metric("ts_inference_requests_total", model)

    def wait_ready(self, model: str, workers: int = 1) -> None:
        def is_ready() -> bool:
            states = [worker["status"] for worker in self.describe(model)["workers"]]
            return states.count("READY") >= workers

        wait_until(is_ready, 60, f"{workers} ready workers of {model}; the log:\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)


def start_server(
    folder: Path,
    store: Path,
    *,
    flags: tuple[str, ...] = (),
    through_environment: bool = True,
    has_tokens: bool = False,
    has_snapshots: bool = False,
    goes_on: bool = False,
    has_model_api: bool = True,
    variables: Mapping[str, str] | None = None,
    **keys: object,
) -> RunningServer:
    """Start `python -m ts_frontend` and wait for its word. keys: lines of its config.properties.

    through_environment: workers inherit the paths of this checkout, too.
    goes_on: from the newest snapshot in `folder`, with no configuration named; keys do not count.
    variables: more of the server's environment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temp = folder / "tmp"
    temp.mkdir(exist_ok=True)
    settings = {
        "inference_address": "http://127.0.0.1:0",
        "management_address": "http://127.0.0.1:0",
        "metrics_address": "http://127.0.0.1:0",
        "grpc_inference_port": "0",
        "grpc_management_port": "0",
        "disable_system_metrics": "true",
        **keys,
    }
    both = settings["inference_address"]
    if settings["management_address"] == both and str(both).endswith(":0"):
        # Equal texts would mean one listener for both.
        settings["management_address"] = "http://localhost:0"
    config = folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    log = folder / "server.log"
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "ts_frontend"]
    environment = {**os.environ, "TEMP": str(temp), **(variables or {})}
    if through_environment:
        environment["PYTHONPATH"] = os.pathsep.join(SOURCE_PATHS)
    else:
        environment.pop("PYTHONPATH", None)
        start = f"import sys; sys.path[:0] = {SOURCE_PATHS}; import ts_frontend.__main__ as m"
        command = [sys.executable, "-c", f"{start}; sys.exit(m.main())"]
    if not goes_on:
        command += ["--ts-config", str(config)]
    if not (has_snapshots or goes_on):
        command.append("--ncs")
    command += ["--model-store", str(store)]
    if has_model_api:
        command.append("--enable-model-api")
    if not has_tokens:
        command.append("--dt")
    command += ["--ready-fd", str(writer), *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, pass_fds=[writer]
        )
    os.close(writer)
    word = _last_word(reader)
    if not word.startswith("READY"):
        process.kill()
        process.wait()
        pytest.fail(f"the server did not start: {word}\n{log.read_text()[-4000:]}")
    places = dict(part.rsplit(" ", 1) for part in word.removeprefix("READY ").split(", "))
    both_places = places.get("Inference and management", "")
    return RunningServer(
        process,
        inference=places.get("Inference", both_places),
        management=places.get("Management", both_places),
        metrics=places.get("Metrics", ""),
        store=store,
        folder=folder,
        log=log,
        grpc_inference=places.get("gRPC inference", ""),
        grpc_management=places.get("gRPC management", ""),
    )


def _last_word(reader: int) -> str:
    """The READY or FAILED line of the pipe, or what came before it was closed."""
    heard = b""
    deadline = time.monotonic() + START_TIMEOUT_S
    with contextlib.closing(os.fdopen(reader, "rb", buffering=0)) as pipe:
        while time.monotonic() < deadline:
            if not select.select([pipe], [], [], 0.2)[0]:
                continue
            piece = pipe.read(65536)
            heard += piece or b""
            last = heard.decode().strip().rpartition("\n")[2]
            if not piece or last.startswith(("READY", "FAILED")):
                return last
    return heard.decode()


def children_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
