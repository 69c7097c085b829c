"""What a worker process is started with: command line and environment.

Source: contract, wire protocol sections 1.1 and 1.2.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ts.protocol.controls import CONTROLS_VARIABLE
from ts.protocol.log_lines import LEVELS_VARIABLE
from ts.protocol.restrictions import Restrictions
from ts_frontend.core.errors import InvalidArgument
from ts_frontend.core.model import Containment, Model, ParallelType, TorchrunConfig
from ts_frontend.workers.connections.shared_memory import SharedBodies, SharedMemoryLane
from ts_frontend.workers.process import StartProcess, WorkerProcess
from ts_frontend.workers.zygote import Zygote

MAX_PORT = 65535
MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path of Linux, without its closing zero

# glibc gives freed memory at the end of the heap back to the system, and larger blocks at once: the
# tensors of each batch were faulted in anew, a sixth of a small network's time. Up to these bounds
# it would raise both thresholds by itself (man 3 mallopt); 64 MiB may stay with a worker.
HEAP_VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 1024 * 1024),
}


@dataclass(frozen=True, slots=True)
class WorkerLaunch:
    """The server-wide half of every worker's start.

    home:        the folder that contains the package `ts`.
    python:      the interpreter of runtime "python".
    environment: what workers inherit; secrets and hidden names are already taken out.
    socket_dir:  private to this server (mode 0700), so that two servers never share a socket.
    max_field_bytes: the largest part of a reply that is accepted (`max_response_size`).
    shared_bodies: memory that large bodies may lie in; None sends all through the socket.
    zygote: what workers are forked from; None starts an interpreter for each.
    worker_start: "fork" or "spawn", of models that do not say.
    is_by_hand: somebody starts the workers, in a debugger say, and is given all the time he wants.
    """

    home: str
    python: str
    environment: Mapping[str, str]
    socket_dir: str
    metrics_config: str
    log_location: str = "logs"
    connection: str = "unix"
    max_field_bytes: int = 6553500
    limit_max_image_pixels: bool = True
    cpu_launcher_args: Sequence[str] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    shared_bodies: SharedBodies | None = None
    zygote: Zygote | None = None
    worker_start: str = "spawn"
    is_by_hand: bool = False

    def __post_init__(self) -> None:
        """Raises InvalidArgument if the folder's path is too long for sockets in it."""
        longest = os.fsencode(self.address(MAX_PORT))
        if self.connection == "unix" and len(longest) > MAX_SOCKET_PATH_BYTES:
            raise InvalidArgument(
                f"The path of a worker's socket would have {len(longest)} bytes and may have "
                f"{MAX_SOCKET_PATH_BYTES}; choose a shorter temporary directory than "
                f"{self.socket_dir}"
            )

    def address(self, port: int) -> str:
        if self.connection == "unix":
            return os.path.join(self.socket_dir, f".ts.sock.{port}")
        return f"127.0.0.1:{port}"

    def clear_address(self, port: int, width: int = 1) -> None:
        """Remove the sockets of an ended worker; one that was killed has left them there."""
        if self.connection == "unix":
            for rank in range(width):
                with contextlib.suppress(OSError):
                    os.unlink(self.address(port + rank))

    def open_temp_dir(self, port: int) -> dict[str, str]:
        """A fresh temporary folder for one process, as variables for it. Raises OSError."""
        path = self._temp_dir(port)
        os.makedirs(path, 0o700, exist_ok=True)
        return {"TMPDIR": path, "TEMP": path, "TMP": path}

    def remove_temp_dir(self, port: int) -> None:
        """Blocks. What cannot be removed goes with the server's own folder."""
        shutil.rmtree(self._temp_dir(port), ignore_errors=True)

    def _temp_dir(self, port: int) -> str:
        return os.path.join(self.socket_dir, f"tmp-{port}")

    def command(self, model: Model, port: int) -> list[str]:
        script = os.path.join(self.home, "ts", "model_service_worker.py")
        if self.connection == "unix":
            where = ["--sock-type", "unix", "--sock-name", self.address(port)]
        else:
            where = ["--sock-type", "tcp", "--port", str(port)]
        command = [
            *self._interpreter(model, port),
            script,
            *where,
            "--metrics-config",
            self.metrics_config,
        ]
        if model.config.async_communication:
            command.append("--async")
        return command

    def ranks(self, model: Model) -> int:
        """How many processes of one worker are spoken to, each on a socket of its own."""
        torchrun = model.config.torchrun
        if torchrun is None or not _is_ranked(model) or model.config.async_communication:
            return 1
        return torchrun.nproc_per_node

    def _interpreter(self, model: Model, port: int) -> list[str]:
        torchrun = model.config.torchrun
        if torchrun is not None and _is_ranked(model):
            beside = os.path.join(os.path.dirname(model.python or self.python), "torchrun")
            command = [
                beside if os.path.exists(beside) else "torchrun",
                *("--nnodes", str(torchrun.nnodes)),
                *("--nproc-per-node", str(torchrun.nproc_per_node)),
                *("--log-dir", os.path.join(self.log_location, "torchelastic_ts")),
                *("--rdzv-backend", torchrun.rdzv_backend),
            ]
            if endpoint := _meeting_place(torchrun):
                command += ["--rdzv-endpoint", endpoint]
            if torchrun.rdzv_conf:
                command += ["--rdzv-conf", torchrun.rdzv_conf]
            if torchrun.monitor_interval_s is not None:
                command += ["--monitor-interval", str(torchrun.monitor_interval_s)]
            if torchrun.node_rank is not None:
                command += ["--node-rank", str(torchrun.node_rank)]
            return [*command, "--rdzv-id", f"{model.id.name}_{port}", "--max-restarts", "1"]
        if model.runtime == "python3":
            return ["python3"]
        if model.runtime != "python":
            raise InvalidArgument(f"Invalid RuntimeType value: {model.runtime}")
        python = model.python or self.python
        if model.config.use_venv and not model.python:
            # A folder that is only linked to stays as it is; its venv lies beside the link.
            linked = os.path.islink(model.path)
            folder = os.path.dirname(model.path) if linked else os.path.realpath(model.path)
            venv_python = os.path.join(folder, "venv", "bin", "python")
            python = venv_python if os.path.exists(venv_python) else python
        launcher = self.cpu_launcher_args
        if launcher is None:
            return [python]
        return [python, "-m", "torch.backends.xeon.run_cpu", *launcher]

    def starter(self, model: Model) -> StartProcess:
        """What starts the processes of `model`: a fork, if it is wanted and gives the same."""
        is_plain = model.config.parallel_type is ParallelType.NONE
        is_wanted = (model.config.worker_start or self.worker_start) == "fork"
        is_wanted = is_wanted and is_plain and self._interpreter(model, 0) == [self.python]
        if self.zygote is not None and is_wanted:
            return self.zygote.start
        return WorkerProcess.start

    def open_lane(self, model: Model) -> SharedMemoryLane | None:
        """Shared memory with one process to be started; None where that cannot be or is off.

        Launchers that stand between us and the worker close what they do not know.
        """
        if self.shared_bodies is None or not self._is_direct(model):
            return None
        return self.shared_bodies.open_lane()

    def _is_direct(self, model: Model) -> bool:
        """Whether the worker is the process that we start, and no launcher's."""
        return self.cpu_launcher_args is None and not _is_ranked(model)

    def worker_environment(self, model: Model, gpus: Sequence[int]) -> dict[str, str]:
        environment = {**self.environment, **self.variables}
        environment["PYTHONPATH"] = os.pathsep.join(self._python_path(model))
        # Ours reads these; TorchServe's worker does not know them.
        parent = str(os.getpid()) if self._is_direct(model) else "1"  # the launcher, whoever it is
        environment["TS_WORKER_DIE_WITH_PARENT"] = parent
        environment[LEVELS_VARIABLE] = "1"
        config = model.config
        environment.update(_restrictions(config.containment).to_variables())
        if not _is_ranked(model):
            # Of several ranks only one would hear of a cancel, and leave the others waiting.
            environment[CONTROLS_VARIABLE] = "1"
        if config.torchrun is not None and config.parallel_type is not ParallelType.NONE:
            environment["LOGLEVEL"] = "INFO"
            environment["OMP_NUM_THREADS"] = str(config.torchrun.omp_threads)
        if config.parallel_type is not ParallelType.NONE and gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        return environment

    def shell_line(self, model: Model, port: int, gpus: Sequence[int]) -> str:
        """What starts a worker in a shell that has the server's variables."""
        ours = self.worker_environment(model, gpus)
        del ours["TS_WORKER_DIE_WITH_PARENT"]  # its parent is the shell
        variables = [
            f"{name}={shlex.quote(value)}"
            for name, value in ours.items()
            if self.environment.get(name) != value
        ]
        command = [*variables, shlex.join(self.command(model, port))]
        return f"cd {shlex.quote(model.path)} && {' '.join(command)}"

    def _python_path(self, model: Model) -> list[str]:
        path = []
        handler_file, colon, _ = model.handler.partition(":")
        if colon and "/" in handler_file:
            path.append(handler_file.rpartition("/")[0])
        if inherited := self.environment.get("PYTHONPATH"):
            path.append(inherited)
        path.append(os.path.realpath(model.path))
        if model.packages:
            path.append(model.packages)
        if os.path.islink(model.path):
            path.append(os.path.dirname(model.path))
        if os.path.basename(self.home) not in ("site-packages", "dist-packages"):
            path.append(self.home)
        return path


def _is_ranked(model: Model) -> bool:
    """Whether torchrun starts its workers, as several processes."""
    return model.config.parallel_type not in (ParallelType.NONE, ParallelType.CUSTOM)


def _meeting_place(torchrun: TorchrunConfig) -> str:
    """Where the processes of one worker find each other.

    Without a place torchrun takes one port for all, where workers of two servers that have the same
    number meet each other. On one machine a port that is free will do, for each worker its own.
    """
    if not torchrun.rdzv_endpoint and torchrun.nnodes == 1 and torchrun.rdzv_backend == "c10d":
        return "localhost:0"
    return torchrun.rdzv_endpoint


def _restrictions(wanted: Containment) -> Restrictions:
    return Restrictions(
        address_space_bytes=wanted.address_space_bytes,
        cpu_s=wanted.cpu_s,
        open_files=wanted.open_files,
        file_bytes=wanted.file_bytes,
        is_offline=wanted.is_offline,
        is_unprivileged=wanted.is_unprivileged,
    )


def split_launcher_args(text: str) -> list[str]:
    return shlex.split(text)


class PortAllocator:
    """Worker ids: the smallest free number from `first` on, given back when the worker is gone.

    TorchServe only counts up, so a server with many reloads walks into other ports.
    """

    def __init__(self, first: int, *, is_tcp: bool) -> None:
        self._first = first
        self._is_tcp = is_tcp
        self._taken: set[int] = set()

    def take(self, width: int = 1) -> int:
        """The first of `width` free numbers in a row.

        Raises InvalidArgument when there are none.
        """
        port = self._first
        while port + width - 1 <= MAX_PORT:
            wanted = range(port, port + width)
            if all(p not in self._taken and self._is_free(p) for p in wanted):
                self._taken.update(wanted)
                return port
            port += 1
        raise InvalidArgument(
            f"No free worker port from {self._first} on; check initial_worker_port."
        )

    def give_back(self, port: int, width: int = 1) -> None:
        self._taken.difference_update(range(port, port + width))

    def _is_free(self, port: int) -> bool:
        if not self._is_tcp:
            return True
        with socket.socket() as probe:
            # As workers do: a connection that has ended does not keep the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
            return True
