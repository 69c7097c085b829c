"""What a worker pool needs around it, and what must be left of it in the end: nothing.

`Bench` makes pools of two kinds. By default their workers are processes of
`models/stand_in_worker.py` with a real socket. With a `Script` set, the processes only print that
they have started, and the script plays what they answer.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from fakes import Script

from ts_frontend.core.model import Model, ModelConfig, ModelId, WorkerCare
from ts_frontend.workers.connections import load_connection
from ts_frontend.workers.devices import DeviceAllocator
from ts_frontend.workers.environment import PortAllocator, WorkerLaunch
from ts_frontend.workers.pool import WorkerPool
from ts_frontend.workers.session import Connect, WorkerTimes
from ts_frontend.workers.vigil import Vigil
from ts_frontend.workers.watch import WorkerWatch

TEST = Path(__file__).resolve().parent
FIRST_PORT = 9000
# What a worker's life is timed by here: long enough for two busy cores, short enough for a test.
TIMES = WorkerTimes((0.0, 0.01, 0.02, 0.03), listen_s=20, connect_s=5, exit_s=5, goodbye_s=5)
SCRIPTED_PROCESS = "echo $$ >> pids; echo 'Torch worker started.'; exec sleep 600\n"


class RecordingMeters:
    """The server's metrics, as workers see them."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.deaths: list[str] = []
        self.reruns: list[tuple[str, int]] = []
        self.quarantines = 0
        self.queue_ms: list[float] = []
        self.bug: Exception | None = None  # raised by the next load

    def loaded(self, worker_name: str, load_ms: float) -> None:
        assert load_ms > 0
        self.loads.append(worker_name)
        if self.bug is not None:
            bug, self.bug = self.bug, None
            raise bug

    def batch(self, queue_ms: float, worker_thread_ms: float) -> None:
        self.queue_ms.append(queue_ms)

    def died(self, model: Model, cause: str) -> None:
        self.deaths.append(cause)

    def rerun(self, model: Model, reason: str, requests: int) -> None:
        self.reruns.append((reason, requests))

    def quarantined(self, model: Model) -> None:
        self.quarantines += 1

    def worker_line(self, line: str) -> bool:
        return line.startswith("[METRICS]")


class Bench:
    """Set its fields before the first pool is made."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.model_dir = folder / "model"
        self.model_dir.mkdir()
        self.sockets = sockets
        self.home = folder / "home"
        (self.home / "ts").mkdir(parents=True)
        self.script: Script | None = None
        self.connection = "unix"
        self.times = TIMES
        self.max_field_bytes = 1 << 20
        self.meters = RecordingMeters()
        self.first_port = FIRST_PORT
        self.ports = PortAllocator(FIRST_PORT, is_tcp=False)
        self.parallel_ports = PortAllocator(29500, is_tcp=False)
        self.devices = DeviceAllocator(0)
        self.pools: list[WorkerPool] = []
        self.autoscaling: WorkerWatch | None = None
        self.vigil: Vigil | None = None

    def use_tcp(self) -> None:
        self.connection = "tcp"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.first_port = probe.getsockname()[1]
        self.ports = PortAllocator(self.first_port, is_tcp=True)

    def launch(self) -> WorkerLaunch:
        script = self.home / "ts" / "model_service_worker.py"
        if not script.exists():
            if self.script is None:
                script.symlink_to(TEST / "models" / "stand_in_worker.py")
            else:
                script.write_text(SCRIPTED_PROCESS)
        return WorkerLaunch(
            home=str(self.home),
            python=sys.executable if self.script is None else "/bin/sh",
            environment={
                "PATH": os.environ["PATH"],
                # Of our packages only ts: a worker has no business with the frontend.
                "PYTHONPATH": str(TEST.parent),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            socket_dir=str(self.sockets),
            metrics_config="metrics.yaml",
            connection=self.connection,
            max_field_bytes=self.max_field_bytes,
        )

    def connect(self) -> Connect:
        return self.script.connect if self.script else load_connection(self.connection)

    def pool(self, **config: Any) -> WorkerPool:
        settings = {"max_batch_delay_ms": 0, "response_timeout_s": 20, "startup_timeout_s": 20}
        # One death or failure, one answer; the tests of second chances ask for them.
        settings |= {"care": WorkerCare(death_retries=0, is_isolating=False)}
        # A scripted process reads no socket, so that nothing tells it to end.
        times = replace(self.times, exit_s=0.01, goodbye_s=0.01) if self.script else self.times
        model = Model(
            ModelId("m", "1.0"),
            ModelConfig(**{**settings, **config}),
            path=str(self.model_dir),
            handler="handler.py",
        )
        pool = WorkerPool(
            model,
            self.launch(),
            self.connect(),
            self.ports,
            self.parallel_ports,
            self.devices,
            self.meters,
            times,
            autoscaling=self.autoscaling,
            vigil=self.vigil,
        )
        model.workers = pool
        self.pools.append(pool)
        return pool

    async def serving(self, workers: int = 1, **config: Any) -> WorkerPool:
        """A pool whose workers have loaded the model."""
        pool = self.pool(**config)
        assert await pool.wait_loaded(pool.scale(workers, workers, 0)) is None
        return pool

    def starts(self, *words: str) -> None:
        """How the next workers start, in this order."""
        (self.model_dir / "starts").write_text("\n".join(words))

    def pids(self) -> list[int]:
        """Of every worker process that was ever started."""
        path = self.model_dir / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def release(self) -> None:
        """For stand-ins that hold an answer."""
        (self.model_dir / "release").touch()

    def is_held(self) -> bool:
        return (self.model_dir / "held").exists()

    def assert_nothing_is_left(self) -> None:
        """To be asked after the pools were closed."""
        assert [pid for pid in self.pids() if is_running(pid)] == []
        assert list(self.sockets.iterdir()) == []
        assert self.ports.take() == self.first_port
        assert self.parallel_ports.take() == 29500
        assert [len(pool.model.queue) for pool in self.pools] == [0 for _ in self.pools]


def is_running(pid: int) -> bool:
    """Not ended; a zombie, whose parent is not us, has."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
