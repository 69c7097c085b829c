"""What all servers have in common: they are started in a folder of their own on free ports of
loopback, asked until the first right answer, and stopped with everything they started.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

from benchmarks import payloads
from benchmarks.load.clients import Request
from benchmarks.load.outcome import Outcome
from benchmarks.machine import MARK, ProcessTree
from benchmarks.works import Deployment, Measure, Work

MODELS = Path(__file__).resolve().parents[1] / "models"
ENVIRONMENTS = Path(__file__).resolve().parents[1] / "envs"
APPS = Path(__file__).resolve().parents[1] / "apps"
BINARY = {"Content-Type": "application/octet-stream"}

_PROBE_INTERVAL_S = 0.01
# A server that takes longer than that is timed less finely, and its log is not flooded.
_EARLY_S, _SLOW_PROBE_INTERVAL_S = 5.0, 0.1
_POLL_INTERVAL_S = 0.05
_STOP_PATIENCE_S = 8.0
_ORPHANS_PATIENCE_S = 0.5  # for workers that notice the end of their frontend by themselves


# What the networks need beside a server.
NETWORKS = ("torch==2.13.0", "numpy", "pillow")


def installed_python(kind: str) -> str:
    """The Python that `--install` made for this kind; "" if it did not."""
    python = ENVIRONMENTS / kind / "bin" / "python"
    return str(python) if python.exists() else ""


class StartFailed(Exception):
    """The server did not come to give right answers; names its log."""


@dataclass(frozen=True)
class ServerOptions:
    """One column of a report.

    python: of the environment the server is installed in; "" = the one that `--install` made for
            its kind, or else the one that runs this tool.
    settings: what the kind makes of it, for instance lines of config.properties.
    """

    name: str
    kind: str
    python: str = ""
    settings: dict[str, str] = field(default_factory=dict)


class Launch(NamedTuple):
    words: Sequence[str]
    environment: dict[str, str]


class GrpcCall(NamedTuple):
    """message, answer: as they cross the wire."""

    method: str
    message: bytes
    answer: bytes


class RunningServer:
    """A started server. log: its stdout and stderr."""

    def __init__(
        self, process: subprocess.Popen[bytes], tree: ProcessTree, ports: Ports, log: Path
    ) -> None:
        self.process = process
        self.tree = tree
        self.ports = ports
        self.log = log
        self.launched = time.monotonic()
        self.start_s = 0.0  # from launch to the first right answer

    def has_ended(self) -> bool:
        return self.process.poll() is not None and not self.tree.alive()

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-600:]

    def stop(self) -> None:
        """Asks the process we started, then those it has left behind, then does not ask."""
        self._signal([self.process.pid], signal.SIGTERM)
        self._wait_until(lambda: self.process.poll() is not None, _STOP_PATIENCE_S)
        if self._wait_until(self.has_ended, _ORPHANS_PATIENCE_S):
            return
        self._signal(self.tree.alive(), signal.SIGTERM)
        if self._wait_until(self.has_ended, _STOP_PATIENCE_S):
            return
        self._signal(self.tree.alive(), signal.SIGKILL)
        self._wait_until(self.has_ended, _STOP_PATIENCE_S)

    def _signal(self, pids: Sequence[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _wait_until(self, condition: Callable[[], bool], patience_s: float) -> bool:
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_INTERVAL_S)
        return True


class ServerKind(ABC):
    """How one server is found, started and spoken to. Holds no running server."""

    # What `--install` puts into an environment of its own; () where that makes no sense.
    requirements: ClassVar[tuple[str, ...]] = ()
    start_timeout_s: ClassVar[float] = 120.0
    first_warmup_s: ClassVar[float] = 0.0  # besides the plan's, before the first load on a start

    def __init__(self, options: ServerOptions) -> None:
        self.name = options.name
        self.settings = options.settings
        python = options.python or installed_python(options.kind)
        self.has_own_environment = bool(python)
        self.python = os.path.abspath(python) if python else sys.executable

    @abstractmethod
    def why_missing(self) -> str:
        """Why this server cannot be started here; "" if it can."""

    def hint(self) -> str:
        """What to do about a server that was not found, if nothing was done yet."""
        if self.has_own_environment:
            return ""
        return f"; see --install, or give an environment with --env {self.name}=PYTHON"

    @abstractmethod
    def version(self) -> str:
        """What the report calls it, once `why_missing` said nothing."""

    def why_not(self, work: Work) -> str:
        """Why this server cannot do this work; "" if it can."""
        deployment = work.deployment
        if deployment.archive:
            return "takes no model archives"
        if work.measure is Measure.GRPC:
            return "speaks no gRPC here"
        if deployment.task == "explain":
            return "has no explanations"
        if deployment.registered_models > 1:
            return "serves one model"
        return ""

    @abstractmethod
    def command(self, work: Work, folder: Path, ports: Ports) -> Launch:
        """How to start it. folder: empty, its own."""

    @abstractmethod
    def request(self, work: Work) -> Request:
        """The HTTP request that carries the work's payload."""

    def read(self, work: Work, body: bytes) -> bytes:
        """What the answer with this body says, without the wrapping of this server's API.

        Raises ValueError, KeyError, TypeError where it is not one.
        """
        return body

    def grpc_call(self, work: Work) -> GrpcCall:
        """The gRPC call that carries the work's payload."""
        raise NotImplementedError(f"{self.name} speaks no gRPC here")

    def load(self, server: RunningServer, work: Work, seconds: float) -> Outcome | None:
        """Do the work in a way of its own, without a client; None: as a client of HTTP asks.

        Raises LoadFailed.
        """
        return None

    def prepare(self, server: RunningServer, work: Work) -> None:  # noqa: B027  (a hook)
        """What remains to be done after the first right answer. Raises StartFailed."""

    def start(self, work: Work, folder: Path, log: Path) -> RunningServer:
        """A server that has given its first right answer.

        folder: short, since sockets may be made below it; emptied first. log: overwritten.
        Raises StartFailed, OSError.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ports = Ports()
        launch = self.command(work, folder, ports)
        mark = uuid.uuid4().hex
        with log.open("wb") as output:
            process = subprocess.Popen(
                launch.words,
                cwd=folder,
                env={
                    **os.environ,
                    "TMPDIR": str(folder),
                    "TEMP": str(folder),
                    **launch.environment,
                    MARK: mark,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        server = RunningServer(process, ProcessTree(process.pid, mark), ports, log)
        try:
            self._wait_for_first_answer(server, work)
            self.prepare(server, work)
        except BaseException:
            server.stop()
            raise
        return server

    def _wait_for_first_answer(self, server: RunningServer, work: Work) -> None:
        request = self.request(work)
        problem = "it was not asked"
        while time.monotonic() < server.launched + self.start_timeout_s:
            # Looking at all processes takes time that would be the server's.
            if server.process.poll() is not None and server.has_ended():
                raise StartFailed(f"it ended: {server.last_words()} (log: {server.log})")
            problem = self.check(server, work, request)
            if not problem:
                server.start_s = time.monotonic() - server.launched
                return
            is_early = time.monotonic() < server.launched + _EARLY_S
            time.sleep(_PROBE_INTERVAL_S if is_early else _SLOW_PROBE_INTERVAL_S)
        raise StartFailed(
            f"no right answer within {self.start_timeout_s:.0f} s; {problem} (log: {server.log})"
        )

    def check(self, server: RunningServer, work: Work, request: Request) -> str:
        """Ask once; "" if the answer is right, else what is wrong with it."""
        try:
            status, body = ask(server.ports.http, request)
        except (OSError, http.client.HTTPException) as error:
            return f"no answer: {error!r}"
        if status != 200:
            return f"status {status}: {body[:200]!r}"
        try:
            said = self.read(work, body)
        except (ValueError, KeyError, TypeError) as error:
            return f"not an answer of {self.name} ({error!r}): {body[:200]!r}"
        expected = payloads.answer(work.deployment.task, work.payload)
        if work.deployment.archive or expected is None:
            return "" if said else "an empty answer"
        return "" if said == expected else f"a wrong answer: {said[:100]!r}"


class Ports:
    """Free ports of loopback, each found when it is first asked for."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def named(self, name: str) -> int:
        if name not in self._taken:
            self._taken[name] = free_port(set(self._taken.values()))
        return self._taken[name]

    @property
    def http(self) -> int:
        return self.named("http")

    @property
    def grpc(self) -> int:
        return self.named("grpc")


def free_port(other_than: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in other_than:
            return port


def ask(port: int, request: Request, timeout_s: float = 30.0) -> tuple[int, bytes]:
    """Status and body. Raises OSError, http.client.HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(request.method, request.path, request.body, request.headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def in_environment(python: str, code: str) -> str:
    """What `code` prints in that environment; "" if it fails there."""
    # Else the packages that this tool runs with would be seen there too.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            [python, "-c", code],
            capture_output=True,
            text=True,
            cwd="/",
            env=environment,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def distribution_version(python: str, name: str) -> str:
    """ "" where that environment does not have it."""
    return in_environment(python, f"import importlib.metadata as m; print(m.version({name!r}))")


class AppServer(ServerKind):
    """A framework that serves a short program of `apps/`, in the framework's own environment.

    The program gets its work by environment variables, see `apps/common.py`.
    """

    app: ClassVar[str]
    distribution: ClassVar[str]  # what to install, and whose version to report
    variables: ClassVar[dict[str, str]] = {}

    def why_missing(self) -> str:
        if not os.access(self.python, os.X_OK):
            return f"there is no {self.python}"
        if distribution_version(self.python, self.distribution):
            return ""
        return f"{self.distribution} is not installed in {self.python}{self.hint()}"

    def version(self) -> str:
        return f"{self.distribution} {distribution_version(self.python, self.distribution)}"

    def command(self, work: Work, folder: Path, ports: Ports) -> Launch:
        return Launch(self.words(folder, ports), self.environment(work.deployment, ports))

    def words(self, folder: Path, ports: Ports) -> Sequence[str]:
        return [self.python, str(APPS / self.app)]

    def environment(self, deployment: Deployment, ports: Ports) -> dict[str, str]:
        return {
            "PATH": os.pathsep.join([str(Path(self.python).parent), os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join([str(APPS), str(MODELS)]),
            "OMP_NUM_THREADS": "1",
            "APP_TASK": deployment.task,
            "APP_BATCH_SIZE": str(deployment.batch_size),
            "APP_DELAY_MS": str(deployment.max_batch_delay_ms),
            "APP_WORKERS": str(deployment.workers),
            "APP_PORT": str(ports.http),
            "APP_GRPC_PORT": str(ports.grpc),
            **self.variables,
            **self.settings,
        }

    def request(self, work: Work) -> Request:
        return Request("POST", "/predict", dict(BINARY), payloads.body(work.payload))


def json_request(path: str, content: object) -> Request:
    body = json.dumps(content, separators=(",", ":")).encode()
    return Request("POST", path, {"Content-Type": "application/json"}, body)


def as_text(work: Work) -> str:
    """The payload for APIs that speak JSON: images as base64, letters as they are."""
    content = payloads.body(work.payload)
    if work.deployment.task in ("cnn", "resnet"):
        return base64.b64encode(content).decode()
    return content.decode()
