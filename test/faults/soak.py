"""The server under mixed load and faults for minutes or hours: what it answered, what it kept.

Two loads run side by side. The steady one goes to models whose workers are left alone: each of its
requests must get its own right answer. The rough one goes to models whose workers are killed,
stopped, crashed and made to babble, and its clients leave in the middle: there every request must
end, and an answer must still be the right one or a proper error. Every few seconds the server's
memory, descriptors, threads, children and tasks are noted. At the end the load stops, everything
settles, and what the server still holds is compared with what it held after the warm-up.

Ends with status 1 if the books do not balance or a figure does not come back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import random
import re
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil
import requests
from faults.load import (
    Answer,
    Ask,
    Connection,
    Fate,
    Ledger,
    Load,
    echo_asks,
    is_marked_stream,
    padded,
    stream_of,
)
from serving import (
    DIGITS,
    MODELS,
    RunningServer,
    archive,
    archive_digits,
    children_of,
    start_server,
)

OWN_MODELS = Path(__file__).parent / "models"
SAMPLE_S = 2.0
FAULT_S = 3.0
WARM_UP_S = 15.0
SETTLE_S = 30.0
MIB = 1024 * 1024

# What may be left over after the load: of memory and threads beyond what there was after the
# warm-up, of the others beyond what there was before the load.
MEMORY_SLACK = 24 * MIB
MEMORY_SLACK_PER_MINUTE = 0.5 * MIB
COUNT_SLACK = {"descriptors": 3, "threads": 2, "children": 0, "tasks": 3, "connections": 2}

ERRORS = frozenset({200, 500, 503, 507})


@dataclass
class Sample:
    """What the server holds. resident, pss: bytes of the frontend; tasks, connections: its word."""

    seconds: float
    resident: int
    pss: int
    descriptors: int
    threads: int
    children: int
    tasks: int
    connections: int
    sent: int


def gauge(text: str, name: str) -> int:
    found = re.search(rf"^{name}(?:\{{\}})? (\S+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else -1


def take_sample(server: RunningServer, began_s: float, sent: int) -> Sample:
    process = psutil.Process(server.process.pid)
    memory = process.memory_full_info()
    metrics = requests.get(f"{server.metrics}/metrics", timeout=20).text
    return Sample(
        seconds=round(time.monotonic() - began_s, 1),
        resident=memory.rss,
        pss=memory.pss,
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        children=len(process.children(recursive=True)),
        tasks=gauge(metrics, "ts_event_loop_tasks"),
        connections=gauge(metrics, "ts_http_connections"),
        sent=sent,
    )


# Models and what is asked of them.


def fill_store(store: Path, scratch: Path) -> None:
    asynchronous = scratch / "model-config.yaml"
    asynchronous.parent.mkdir(parents=True)
    asynchronous.write_text("minWorkers: 1\nmaxWorkers: 1\nasyncCommunication: true\n")
    for name in ("steady", "rough"):
        archive(store, name, MODELS / "ids.py")
    archive(store, "stream", OWN_MODELS / "marked_stream.py")
    archive(store, "rough_stream", OWN_MODELS / "marked_stream.py")
    archive(
        store,
        "stream_async",
        OWN_MODELS / "marked_stream_async.py",
        config_file=str(asynchronous),
    )
    archive(store, "misbehaves", OWN_MODELS / "misbehaves.py")
    archive_digits(store, config_file=str(DIGITS / "model-config.yaml"))


def steady_asks() -> list[Ask]:
    image = (DIGITS / "test_data" / "3.png").read_bytes()

    def is_three(mark: str, answer: Answer) -> bool:
        scores = json.loads(answer.body)
        return bool(max(scores, key=scores.get) == "3")

    return [
        *echo_asks("steady"),
        Ask("stream", "stream", stream_of(10), is_marked_stream, weight=3),
        Ask("async stream", "stream_async", stream_of(10), is_marked_stream, weight=3),
        Ask("digit", "digits", lambda mark: image, is_three, weight=1),
    ]


def rough_asks() -> list[Ask]:
    deeds = ("hog", "chatter 200", "babble 500", "leak 1")
    return [
        *echo_asks("rough"),
        Ask("abort in the body", "rough", padded(100_000), leaves="sending", weight=2),
        Ask("abort while waiting", "rough", leaves="waiting", weight=2),
        Ask("abort while streaming", "stream_async", stream_of(300), leaves="reading", weight=1),
        Ask("broken stream", "rough_stream", stream_of(200, 500), is_marked_stream, weight=3),
        *(
            Ask(deed, "misbehaves", lambda mark, d=deed: f"{mark}\n{d}".encode(), weight=1)
            for deed in deeds
        ),
    ]


# Faults.


async def cause_faults(
    server: RunningServer, counts: dict[str, int], chance: random.Random
) -> None:
    """One fault after another until cancelled."""
    faults = (
        (kill_worker, "rough"),
        (kill_worker, "rough_stream"),
        (stop_worker, "rough"),
        (crash, "segfault"),
        (crash, "_exit 5"),
        (crash, "exit 4"),
        (crash, "hang 60"),
        (crash, "huge 8000000"),
        (send_garbage, ""),
        (dawdle, ""),
        (reload_model, ""),
    )
    while True:
        await asyncio.sleep(FAULT_S)
        fault, argument = chance.choice(faults)
        name = f"{fault.__name__} {argument}".strip()
        counts[name] = counts.get(name, 0) + 1
        with contextlib.suppress(OSError, psutil.Error, TimeoutError):
            async with asyncio.timeout(20):
                await fault(server, argument)


async def _signal_worker(server: RunningServer, model: str, number: int) -> None:
    pids = [pid for pid in await asyncio.to_thread(server.worker_pids, model) if pid > 0]
    if pids:
        psutil.Process(random.choice(pids)).send_signal(number)


async def kill_worker(server: RunningServer, model: str) -> None:
    await _signal_worker(server, model, signal.SIGKILL)


async def stop_worker(server: RunningServer, model: str) -> None:
    await _signal_worker(server, model, signal.SIGSTOP)


async def crash(server: RunningServer, deed: str) -> None:
    connection = await Connection.open(server.inference)
    await connection.send(
        Ask("", "misbehaves", lambda mark: f"crash\n{deed}".encode(), closes=True).request("")
    )
    await connection.answer()
    await connection.close()


async def send_garbage(server: RunningServer, _: str) -> None:
    connection = await Connection.open(server.inference)
    await connection.send(Ask("", "rough").request("before garbage") + b"\x00garbage\r\n\r\n")
    await connection.answer()
    await connection.answer()
    await connection.close()


async def dawdle(server: RunningServer, _: str) -> None:
    """A hundred clients that begin a request and go on to do nothing; they are reset at the end."""
    idle = [await Connection.open(server.inference) for _ in range(100)]
    for connection in idle:
        await connection.send(b"POST /predictions/rough HTTP/1.1\r\nContent-Length: 100\r\n\r\nx")
    await asyncio.sleep(5)
    for connection in idle:
        connection.reset()


async def reload_model(server: RunningServer, _: str) -> None:
    """Another version comes and goes beside the one that is asked."""
    url = f"{server.management}/models"
    query = {"url": "steady.mar", "model_name": "passing", "initial_workers": 1}
    await asyncio.to_thread(requests.post, url, params=query, timeout=20)
    await asyncio.to_thread(requests.delete, f"{url}/passing", timeout=20)


# The run.


async def soak(server: RunningServer, minutes: float, rate: float, seed: int) -> Outcome:
    began_s = time.monotonic()
    steady, rough = Ledger("steady"), Ledger("rough")
    steady_load = Load(server.inference, steady_asks(), steady, lanes=8, rate_per_s=rate, seed=seed)
    rough_load = Load(
        server.inference,
        rough_asks(),
        rough,
        lanes=8,
        rate_per_s=rate / 2,
        expected=ERRORS,
        seed=seed + 1,
    )
    samples = [await asyncio.to_thread(take_sample, server, began_s, 0)]
    counts: dict[str, int] = {}

    async def sample_until_cancelled() -> None:
        while True:
            sent = steady.sent + rough.sent
            samples.append(await asyncio.to_thread(take_sample, server, began_s, sent))
            await asyncio.sleep(SAMPLE_S)

    sampling = asyncio.create_task(sample_until_cancelled())
    async with steady_load.running(), rough_load.running():
        await asyncio.sleep(WARM_UP_S)
        warm = len(samples) - 1
        faults = asyncio.create_task(cause_faults(server, counts, random.Random(seed)))
        await asyncio.sleep(max(0.0, minutes * 60 - WARM_UP_S))
        faults.cancel()
        await asyncio.gather(faults, return_exceptions=True)
    await asyncio.sleep(SETTLE_S)
    sampling.cancel()
    outcomes = await asyncio.gather(sampling, return_exceptions=True)
    failed = [it for it in outcomes if isinstance(it, Exception)]
    if failed:
        raise failed[0]
    return Outcome(samples, warm, steady, rough, counts)


@dataclass
class Outcome:
    samples: list[Sample]
    warm: int  # index of the last sample of the warm-up
    steady: Ledger
    rough: Ledger
    faults: dict[str, int]

    def problems(self) -> list[str]:
        wrong = [f"steady load: {it}" for it in self.steady.imbalance()]
        accepted = (Fate.CUT, Fate.LEFT)  # of streams whose worker died; of clients that leave
        wrong += [f"rough load: {it}" for it in self.rough.imbalance(*accepted)]
        idle, start, end = self.samples[0], self.samples[self.warm], self.samples[-1]
        for name, slack in COUNT_SLACK.items():
            # Threads are started when they are first needed, everything else comes and goes.
            before = getattr(start if name == "threads" else idle, name)
            after = getattr(end, name)
            if after > before + slack:
                wrong.append(f"{name}: {before} at first, {after} at the end")
        minutes = (end.seconds - start.seconds) / 60
        allowed = MEMORY_SLACK + MEMORY_SLACK_PER_MINUTE * minutes
        if end.pss > start.pss + allowed:
            grown = (end.pss - start.pss) / MIB
            wrong.append(f"memory: {grown:.1f} MiB more than after the warm-up")
        return wrong

    def table(self) -> str:
        middle = self.samples[len(self.samples) // 2]
        places = (self.samples[0], self.samples[self.warm], middle, self.samples[-1])
        lines = [f"{'':12}{'start':>12}{'warm':>12}{'middle':>12}{'end':>12}{'highest':>12}"]
        for field in fields(Sample):
            name = field.name
            values = [getattr(place, name) for place in places]
            values.append(max(getattr(sample, name) for sample in self.samples))
            if name in ("resident", "pss"):
                values = [f"{value / MIB:.1f} MiB" for value in values]
            lines.append(f"{name:12}" + "".join(f"{value!s:>12}" for value in values))
        return "\n".join(lines)


def restarts(server: RunningServer) -> dict[str, int]:
    text = requests.get(f"{server.metrics}/metrics", timeout=20).text
    series = r'ts_worker_restarts_total\{model_name="(.*?)".*cause="(.*?)".*\} (\S+)'
    return {f"{model}: {cause}": int(float(n)) for model, cause, n in re.findall(series, text)}


def write_samples(samples: list[Sample], output: Path) -> Path:
    """A plot, or the bare numbers where matplotlib is missing."""
    numbers = output / "soak.csv"
    with numbers.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Sample)])
        writer.writeheader()
        writer.writerows(asdict(sample) for sample in samples)
    try:
        import matplotlib
    except ImportError:
        return numbers
    matplotlib.use("Agg")
    from matplotlib import pyplot

    minutes = [sample.seconds / 60 for sample in samples]
    figure, axes = pyplot.subplots(3, 2, figsize=(11, 8), sharex=True, layout="constrained")
    names = ("pss", "descriptors", "threads", "children", "tasks", "connections")
    for axis, name in zip(axes.flat, names, strict=True):
        scale = MIB if name == "pss" else 1
        axis.plot(minutes, [getattr(sample, name) / scale for sample in samples])
        axis.set_title("memory (PSS), MiB" if name == "pss" else name)
        axis.set_ylim(bottom=0)
    for axis in axes[-1]:
        axis.set_xlabel("minutes")
    figure.savefig(output / "soak.png", dpi=100)
    pyplot.close(figure)
    return output / "soak.png"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.partition("\n")[0])
    parser.add_argument("minutes", type=float)
    parser.add_argument("--output", type=Path, default=Path("soak-output"))
    parser.add_argument("--rate", type=float, default=200, help="steady requests per second")
    parser.add_argument("--seed", type=int, default=1, help="of the mix and of the faults")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        store = Path(scratch) / "store"
        fill_store(store, Path(scratch) / "config")
        server = start_server(
            Path(scratch) / "server", store, default_response_timeout=4, http_body_timeout=3
        )
        workers = []
        try:
            load_models(server)
            outcome = asyncio.run(soak(server, options.minutes, options.rate, options.seed))
            causes = restarts(server)
            workers = children_of(server.process.pid)
        finally:
            status = server.stop()
            (options.output / "server.log").write_bytes(server.log.read_bytes()[-MIB:])
    _, left = psutil.wait_procs(workers, timeout=5)
    problems = outcome.problems()
    if status:
        problems.append(f"the server ended with status {status}")
    if left:
        problems.append(f"left running: {left}")
    print(outcome.table())
    print(f"\nsteady: {outcome.steady}; slowest {outcome.steady.slowest_s:.2f} s")
    print(f"rough:  {outcome.rough}; slowest {outcome.rough.slowest_s:.2f} s")
    print(f"faults: {dict(sorted(outcome.faults.items()))}")
    print(f"ends of workers: {causes}")
    print(f"figures: {write_samples(outcome.samples, options.output)}")
    for problem in problems:
        print(f"PROBLEM {problem}", file=sys.stderr)
    print("failed" if problems else "passed")
    return 1 if problems else 0


def load_models(server: RunningServer) -> None:
    for name, query in {
        "steady": {"initial_workers": 2, "batch_size": 4, "max_batch_delay": 2},
        "rough": {"initial_workers": 2, "batch_size": 4, "max_batch_delay": 2},
        "stream": {"initial_workers": 1},
        "rough_stream": {"initial_workers": 1},
        "stream_async": {},
        "misbehaves": {"initial_workers": 1},
        "digits": {"initial_workers": 1},
    }.items():
        answer = server.register(f"{name}.mar", **query)
        if not answer.ok:
            raise SystemExit(f"{name} cannot be loaded: {answer.text}")
        server.wait_ready(name)


if __name__ == "__main__":
    sys.exit(main())
