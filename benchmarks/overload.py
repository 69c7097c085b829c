"""What becomes of a server that is asked for more than it can do: `python -m benchmarks.overload`.

Starts a server with a model of a known speed, measures its capacity with a few clients that wait
for their answers, then sends a multiple of that at random times, whether answers come or not, every
request with a deadline. Printed are the goodput (answers in time), the latencies of what was
answered, and who was refused why.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import uvloop

from benchmarks.spread import percentile
from model_archiver import ModelArchiver, ModelArchiverConfig

ROOT = Path(__file__).resolve().parents[1]
HANDLER = ROOT / "benchmarks" / "models" / "counted.py"
LAST_WAIT_S = 30.0  # for the answers that are still to come at the end


class Answer(NamedTuple):
    """seconds: from when the request was sent.
    lag_s: how much later than it was due, for want of processor time or a connection.
    """

    name: str
    status: int
    seconds: float
    lag_s: float
    reason: str
    retry_after: str


@dataclass
class Step:
    """What came of some seconds of load. sent: how many requests."""

    seconds: float
    sent: int = 0
    answers: list[Answer] = field(default_factory=list)

    def served(self, within_s: float = float("inf")) -> list[Answer]:
        return [a for a in self.answers if a.status == 200 and a.seconds <= within_s]

    def goodput(self, within_s: float) -> float:
        return len(self.served(within_s)) / self.seconds

    def outcomes(self) -> Counter[str]:
        return Counter(f"{a.status} {a.reason}".strip() for a in self.answers)


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answered: asyncio.Future[tuple[int, dict[str, str]]] | None = None
        self._received = b""

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, payload: bytes) -> asyncio.Future[tuple[int, dict[str, str]]]:
        self.answered = asyncio.get_running_loop().create_future()
        if self.transport is None:
            raise ConnectionResetError("closed before the request")
        self.transport.write(payload)
        return self.answered

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if len(body) < int(headers["content-length"]):
            return
        self._received = b""
        if headers.get("connection") == "close" and self.transport is not None:
            self.transport.close()
        if self.answered is not None and not self.answered.done():
            self.answered.set_result((int(status_line.split()[1]), headers))

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.answered is not None and not self.answered.done():
            self.answered.set_exception(error or ConnectionResetError("closed before its answer"))


class Client:
    """Asks one model of one server over as many connections as it takes.

    headers: of every request.
    """

    def __init__(self, port: int, path: str, **headers: str) -> None:
        self._port = port
        self._head = f"POST {path} HTTP/1.1\r\nhost: x\r\n" + "".join(
            f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()
        )
        self._free: list[_Connection] = []
        self._names = 0

    async def ask(self, due_s: float) -> Answer:
        self._names += 1
        name = f"{id(self)}-{self._names}"
        payload = f"{self._head}content-length: {len(name)}\r\n\r\n{name}".encode()
        connection = None
        while self._free and (connection is None or not connection.is_open):
            connection = self._free.pop()
        if connection is None or not connection.is_open:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, "127.0.0.1", self._port
            )
        sent_s = time.monotonic()
        status, headers = await connection.ask(payload)
        seconds = time.monotonic() - sent_s
        if connection.is_open:
            self._free.append(connection)
        return Answer(
            name,
            status,
            seconds,
            sent_s - due_s,
            headers.get("x-error-reason", ""),
            headers.get("retry-after", ""),
        )

    async def closed(self, clients: int, seconds: float) -> Step:
        """`clients` of them ask, each again as soon as it has its answer."""
        step = Step(seconds)
        until_s = time.monotonic() + seconds

        async def one() -> None:
            while (now_s := time.monotonic()) < until_s:
                step.sent += 1
                step.answers.append(await self.ask(now_s))

        await asyncio.gather(*(one() for _ in range(clients)))
        return step

    async def open(self, rate: float, seconds: float, seed: int = 1) -> Step:
        """`rate` requests in a second at random times, whether answers come or not."""
        step = Step(seconds)
        chance = random.Random(seed)  # noqa: S311 - a load
        asking: set[asyncio.Task[Answer]] = set()
        due_s = time.monotonic()
        until_s = due_s + seconds
        while due_s < until_s:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            step.sent += 1
            asking.add(asyncio.create_task(self.ask(due_s)))
            due_s += chance.expovariate(rate)
        async with asyncio.timeout(LAST_WAIT_S):
            step.answers = list(await asyncio.gather(*asking))
        return step

    def close(self) -> None:
        for connection in self._free:
            if connection.transport is not None:
                connection.transport.close()


@contextmanager
def serving(model_config: str, **keys: str) -> Iterator[int]:
    """The port of a server with the model `counted`."""
    with tempfile.TemporaryDirectory(prefix="overload-") as name:
        folder = Path(name)
        (folder / "model-config.yaml").write_text(model_config)
        ModelArchiver.generate_model_archive(
            ModelArchiverConfig(
                model_name="counted",
                handler=str(HANDLER),
                version="1.0",
                export_path=str(folder),
                config_file=str(folder / "model-config.yaml"),
            )
        )
        lines = {
            "inference_address": "http://127.0.0.1:0",
            "management_address": "http://127.0.0.1:0",
            "enable_metrics_api": "false",
            "enable_grpc": "false",
            "disable_system_metrics": "true",
            "load_models": "counted.mar",
            **keys,
        }
        (folder / "config.properties").write_text(
            "".join(f"{key}={value}\n" for key, value in lines.items())
        )
        reader, writer = os.pipe()
        paths = [ROOT / "frontend", ROOT / "model-archiver", ROOT]
        command = [sys.executable, "-m", "ts_frontend", "--ts-config", "config.properties"]
        command += ["--model-store", name, "--ncs", "--dt", "--ready-fd", str(writer)]
        with (folder / "server.log").open("wb") as log:
            server = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
                stdout=log,
                stderr=log,
                pass_fds=[writer],
            )
        os.close(writer)
        try:
            with os.fdopen(reader) as pipe:
                word = next((line for line in pipe if line.startswith(("READY", "FAILED"))), "")
            if not word.startswith("READY"):
                raise RuntimeError(f"no start: {word}\n{(folder / 'server.log').read_text()}")
            yield int(word.partition("Inference ")[2].partition(",")[0].rpartition(":")[2])
        finally:
            server.terminate()
            server.wait(60)


async def measure(port: int, options: argparse.Namespace) -> None:
    path = "/predictions/counted"
    plain = Client(port, path)
    await plain.ask(time.monotonic())  # the workers have loaded
    clients = options.workers * options.batch * 2
    capacity = await plain.closed(clients, options.seconds)
    per_s = len(capacity.served()) / capacity.seconds
    plain.close()
    print(f"capacity: {per_s:.0f}/s ({clients} clients that wait for their answers)")
    deadline_s = options.deadline_ms / 1000
    for factor in options.factors:
        client = Client(port, path, x_request_timeout_ms=str(options.deadline_ms))
        step = await client.open(per_s * factor, options.seconds)
        client.close()
        served = sorted(answer.seconds for answer in step.served())
        refused = sorted(answer.seconds for answer in step.answers if answer.status != 200)
        lags = sorted(answer.lag_s for answer in step.answers)
        print(
            f"{factor:g}x: sent {step.sent / step.seconds:.0f}/s, "
            f"in time {step.goodput(deadline_s):.0f}/s "
            f"= {step.goodput(deadline_s) / per_s:.0%} of the capacity; "
            f"answered in p50 {percentile(served, 0.5) * 1000:.1f} ms, "
            f"p99 {percentile(served, 0.99) * 1000:.1f} ms "
            f"(deadline {options.deadline_ms} ms; "
            f"the client was late by p99 {percentile(lags, 0.99) * 1000:.1f} ms)"
        )
        if refused:
            print(f"    the others heard of it in p50 {percentile(refused, 0.5) * 1000:.1f} ms")
        for outcome, count in step.outcomes().most_common():
            print(f"    {count:7} {outcome}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service-ms", type=float, default=10, help="of a batch (10)")
    parser.add_argument("--item-ms", type=float, default=0, help="more for each request (0)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--queue", type=int, default=100, help="jobQueueSize (100)")
    parser.add_argument("--deadline-ms", type=int, default=200, help="of every request (200)")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1, 2, 5, 10])
    parser.add_argument("--seconds", type=float, default=10, help="of every step (10)")
    options = parser.parse_args()
    model_config = (
        f"minWorkers: {options.workers}\nmaxWorkers: {options.workers}\n"
        f"batchSize: {options.batch}\nmaxBatchDelay: 1\njobQueueSize: {options.queue}\n"
        f"handler:\n  service_ms: {options.service_ms}\n  item_ms: {options.item_ms}\n"
    )
    with serving(model_config) as port, asyncio.Runner(loop_factory=uvloop.new_event_loop) as run:
        run.run(measure(port, options))


if __name__ == "__main__":
    main()
