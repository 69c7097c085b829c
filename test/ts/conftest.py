"""A real worker process, and the frontend's side of its connection."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ts.protocol.messages import (
    LoadModel,
    LoadReply,
    Part,
    PredictReply,
    PredictRequest,
    ReplyReader,
    encode_load,
    encode_predict,
)

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "ts" / "model_service_worker.py"
METRICS = ROOT / "ts" / "configs" / "metrics.yaml"
DEADLINE_S = 30.0


class Lines:
    """What a process prints, as it comes."""

    def __init__(self, stream) -> None:
        self._lines: list[str] = []
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait(self, text: str) -> str:
        """The first line that contains `text`."""

        def found() -> str | None:
            return next((line for line in self._lines if text in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._is_closed, DEADLINE_S)
            line = found()
        assert line is not None, f"no line with {text!r} in:\n" + "\n".join(self._lines)
        return line

    def all(self) -> list[str]:
        """Every line, once the stream has ended."""
        self._thread.join(DEADLINE_S)
        return list(self._lines)

    def so_far(self) -> list[str]:
        return list(self._lines)


class Worker:
    """One started worker; `out` and `err` are its lines."""

    def __init__(self, process: subprocess.Popen, address, model_dir: Path) -> None:
        self.process = process
        self.address = address
        self.model_dir = model_dir
        self.out = Lines(process.stdout)
        self.err = Lines(process.stderr)
        self.socket: socket.socket | None = None
        self._reader = ReplyReader(1 << 26)

    def connect(self) -> None:
        self.out.wait("Torch worker started.")
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(self.address)

    def load(self, handler: str, **changes) -> LoadReply | None:
        """The reply to LOAD, or None if the worker ends without one."""
        if self.socket is None:
            self.connect()
        message = LoadModel("m", str(self.model_dir), 1, handler, None, "", True)
        self.socket.sendall(encode_load(message._replace(**changes)))
        return self._receive(self._reader.next_load)

    def send(self, *requests: PredictRequest) -> None:
        self.socket.sendall(b"".join(encode_predict(requests)))

    def reply(self) -> PredictReply | None:
        return self._receive(self._reader.next_predict)

    def ask(self, *bodies: bytes) -> PredictReply | None:
        """The reply to a batch of raw bodies with the ids r0, r1 ..."""
        self.send(*(request(f"r{index}", body) for index, body in enumerate(bodies)))
        return self.reply()

    def close(self) -> int:
        """Disconnect; the exit status."""
        self.socket.close()
        return self.process.wait(DEADLINE_S)

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def _receive(self, next_message):
        while (message := next_message()) is None:
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._reader.feed(data)
        return message


def request(
    request_id: str, body: bytes = b"", headers=(), content_type: bytes = b""
) -> PredictRequest:
    return PredictRequest(request_id.encode(), list(headers), [Part(b"body", content_type, body)])


def bodies(reply: PredictReply) -> list[bytes]:
    return [bytes(item.body) for item in reply.predictions]


@pytest.fixture
def worker_api():
    """The helpers of this file, for tests (test folders are no packages)."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the test handlers."""
    return ROOT / "test" / "models"


@pytest.fixture
def write_handler(tmp_path: Path) -> Callable[[str], Path]:
    """write_handler(source): a model's folder with this source as `handler.py`."""

    def write(source: str) -> Path:
        (tmp_path / "handler.py").write_text(textwrap.dedent(source))
        return tmp_path

    return write


@pytest.fixture
def start_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Worker]]:
    """start_worker(model_dir, *flags, **environment): a worker in that folder, not connected."""
    started: list[Worker] = []

    def start(
        model_dir: Path,
        *flags: str,
        sock_type: str = "unix",
        arguments: list[str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Worker:
        address: object
        if sock_type == "unix":
            # The system's folder, since a socket's path may not be long.
            folder = tmp_path_factory.mktemp("s")
            address = str(folder / ".ts.sock.9000")
            where = ["--sock-type", "unix", "--sock-name", address]
        else:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                address = probe.getsockname()
            where = ["--sock-type", "tcp", "--port", str(address[1])]
        if arguments is None:
            arguments = [*where, "--metrics-config", str(METRICS)]
        inherited = {
            key: value
            for key, value in os.environ.items()
            if key not in ("PYTHONPATH", "LOCAL_RANK", "TS_DECODE_INPUT_REQUEST")
        }
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments, *flags],
            cwd=model_dir,
            env={**inherited, "PYTHONPATH": f"{model_dir}:{ROOT}", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        worker = Worker(process, address, model_dir)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        if worker.socket is not None:
            worker.socket.close()
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGKILL)
        worker.process.wait(DEADLINE_S)
        worker.out.all()
        worker.err.all()


def wait_until(condition: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_s, "not in time"
        time.sleep(0.005)
