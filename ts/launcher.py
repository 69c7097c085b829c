"""Start and stop a server from a Python script, and watch its output.

from ts import launcher

lines = launcher.start(model_store="model_store", models="all", disable_token=True)
launcher.register_model("mnist", "mnist.mar")
launcher.stop()
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from typing import Any, TextIO

STARTED = "Model server started"
MODELS_URL = "http://localhost:8081/models"
MAX_LINES = 1000
_REQUEST_TIMEOUT_S = 600  # a register waits for workers

Lines = queue.Queue  # of str, with None after the last


def start(
    model_store: str | None = None,
    snapshot_file: str | None = None,
    no_config_snapshots: bool = False,
    plugin_folder: str | None = None,
    disable_token: bool = False,
    models: str | None = None,
    enable_model_api: bool = False,
) -> Lines:
    """Stop a running server, start a new one and wait until it serves.

    Its output is printed, until it ends. The returned queue holds the lines too, the newest
    MAX_LINES of them, and None when there will be no more.
    Raises RuntimeError if the server ends before it serves.
    """
    stop()
    command = _torchserve("--start")
    for flag, value in (
        ("--model-store", model_store),
        ("--ts-config", snapshot_file),
        ("--plugins-path", plugin_folder),
        ("--models", models),
    ):
        if value:
            command += [flag, value]
    for flag, is_given in (
        ("--no-config-snapshots", no_config_snapshots),
        ("--disable-token-auth", disable_token),
        ("--enable-model-api", enable_model_api),
    ):
        if is_given:
            command.append(flag)
    return watch(
        subprocess.Popen(  # noqa: S603  (our own command, no shell)
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    )


def watch(process: subprocess.Popen[str]) -> Lines:
    """Print a process's output until it says that the server serves, and go on in a thread."""
    for_caller: Lines = Lines(MAX_LINES)
    for_terminal: Lines = Lines()
    Tee(process, [for_caller, for_terminal]).start()
    last_lines: deque[str] = deque(maxlen=20)
    while (line := for_terminal.get()) is not None:
        print(line, flush=True)
        last_lines.append(line)
        if STARTED in line:
            PrintTillTheEnd(for_terminal).start()
            return for_caller
    raise RuntimeError("TorchServe did not start. Its last output:\n" + "\n".join(last_lines))


class Tee(threading.Thread):
    """Copies a process's output into queues line by line; None follows the last line."""

    def __init__(self, process: subprocess.Popen[str], queues: list[Lines]) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._queues = queues

    def run(self) -> None:
        stream: TextIO | None = self._process.stdout
        if stream is not None:
            with stream:
                for line in stream:
                    self._put(line.rstrip("\r\n"))
        self._process.wait()
        self._put(None)

    def _put(self, line: str | None) -> None:
        for lines in self._queues:
            # Who does not read loses old lines; the server must not stall on a full pipe.
            while True:
                try:
                    lines.put_nowait(line)
                    break
                except queue.Full:
                    _drop_oldest(lines)


def _drop_oldest(lines: Lines) -> None:
    with contextlib.suppress(queue.Empty):  # the reader was faster
        lines.get_nowait()


class PrintTillTheEnd(threading.Thread):
    """Prints the lines of a queue until None."""

    def __init__(self, lines: Lines) -> None:
        super().__init__(daemon=True)
        self._lines = lines

    def run(self) -> None:
        while (line := self._lines.get()) is not None:
            print(line, flush=True)


def stop(wait: bool = True) -> None:
    """Stop the running server, if there is one. wait: until it has ended, at most a minute."""
    command = _torchserve("--stop", *(["--foreground"] if wait else []))
    subprocess.run(command, check=False)  # noqa: S603  (our own command, no shell)


def _torchserve(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ts.model_server", *arguments]


def register_model(model_name: str, url: str) -> Any:
    """Register with one worker and wait for it; the response, like one of `requests`."""
    return register_model_with_params(
        {
            "model_name": model_name,
            "url": url,
            "initial_workers": "1",
            "synchronous": "true",
        }
    )


def register_model_with_params(params: dict[str, str]) -> Any:
    """Register with the given parameters of the management API."""
    try:
        import requests
    except ImportError:
        return _post(f"{MODELS_URL}?{urllib.parse.urlencode(params)}")
    return requests.post(MODELS_URL, params=params, timeout=_REQUEST_TIMEOUT_S)


class Response:
    """As much of a response of `requests` as scripts use, where that package is missing."""

    def __init__(self, status_code: int, content: bytes) -> None:
        self.status_code = status_code
        self.content = content

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        return self.status_code < 400

    def json(self) -> Any:
        return json.loads(self.content)


def _post(url: str) -> Response:
    request = urllib.request.Request(url, method="POST")  # noqa: S310  (MODELS_URL is http)
    try:
        with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT_S) as answer:  # noqa: S310
            return Response(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Response(error.code, error.read())
