"""Does what a plan says: starts the servers of a work side by side and measures them in turn.

Order of things, for each deployment: start every server that can do it; for each of its works: warm
each server up, then rounds of A B C A B C, so that a machine that gets slower or busier does so for
all; rounds are added while some server has too few quiet measurements; stop everything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine, payloads
from benchmarks.load.clients import Clients, wrk_version
from benchmarks.load.idle import IdleConnections
from benchmarks.load.outcome import LoadFailed, Outcome
from benchmarks.machine import MachineTimes, NoiseLimits
from benchmarks.plan import Plan
from benchmarks.results import Measurement, Results, WorkInfo
from benchmarks.servers import kind
from benchmarks.servers.base import RunningServer, ServerKind, StartFailed
from benchmarks.works import Measure, Work, by_deployment

Say = Callable[[str], None]

_IDLE_S = 2.0  # how long idling is watched
_LOG_BYTES = 100_000
_LOCK_FILE = "ts-benchmarks.lock"


@contextlib.contextmanager
def machine_lock(say: Say) -> Iterator[None]:
    """One run at a time on this machine: two would measure each other."""
    path = Path(tempfile.gettempdir(), _LOCK_FILE)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another benchmark runs on this machine; waiting for its end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass
class Window:
    """What the machine did while something was measured."""

    elapsed_s: float = 0.0
    server_s: float = 0.0
    client_s: float = 0.0
    foreign_s: float = 0.0
    stolen_s: float = 0.0

    @property
    def server_us(self) -> float:
        return self.server_s * 1e6


class Runner:
    """folder: of the results; the servers' logs go there."""

    def __init__(self, plan: Plan, folder: Path, say: Say) -> None:
        self._plan = plan
        self._say = say
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        # Servers make sockets in their folders, whose names must be short.
        self._scratch = Path(tempfile.mkdtemp(prefix="tsb-"))
        self._clients = Clients(self._scratch)
        self._kinds: dict[str, ServerKind] = {}
        self._running: dict[str, RunningServer] = {}
        self._has_been_loaded: set[str] = set()
        self._best_calibration_ms = min(machine.calibrate() for _ in range(5))
        self.results = Results(
            servers={},
            works=[WorkInfo.of(work) for work in plan.works],
            conditions=conditions(plan),
            skipped=[],
            measurements=[],
        )

    def run(self) -> Results:
        try:
            self._find_servers()
            for works in by_deployment(self._plan.works):
                try:
                    self._run_deployment(works)
                finally:
                    self._stop_all()
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        return self.results

    # Which servers.

    def _find_servers(self) -> None:
        for options in self._plan.servers:
            server = kind(options.kind)(options)
            missing = server.why_missing()
            if missing:
                self._skip(f"{server.name}: {missing}")
            else:
                self._kinds[server.name] = server
                self.results.servers[server.name] = server.version()

    def _skip(self, line: str) -> None:
        self.results.skipped.append(line)
        self._say(f"skipped: {line}")

    def _able(self, work: Work) -> list[ServerKind]:
        """The servers that do this work; says why of the others."""
        able = []
        for server in self._kinds.values():
            reason = server.why_not(work)
            if reason:
                self._skip(f"{server.name} for {work.id}: {reason}")
            else:
                able.append(server)
        return able

    # One start.

    def _run_deployment(self, works: list[Work]) -> None:
        keeps_running = not self._plan.is_fresh and works[0].measure is not Measure.START
        failed: set[str] = set()
        for work in works:
            able = [server for server in self._able(work) if server.name not in failed]
            if keeps_running:
                for server in able:
                    if server.name not in self._running and not self._has_started(server, work, 0):
                        failed.add(server.name)
            able = [server for server in able if server.name not in failed]
            self._say(f"\n{work.id}: {work.title}")
            self._run_rounds(work, able)

    def _start(self, server: ServerKind, work: Work) -> RunningServer:
        """Raises StartFailed, OSError."""
        log = self._logs / f"{server.name}-{work.id}.log"
        running = server.start(work, self._scratch / server.name, log)
        self._running[server.name] = running
        return running

    def _has_started(self, server: ServerKind, work: Work, number: int) -> bool:
        """Starts it; a failure is a measurement of that round."""
        try:
            self._start(server, work)
        except (StartFailed, OSError) as error:
            self._record(_failed_start(server, work, number, error))
            return False
        return True

    def _stop(self, name: str) -> None:
        self._has_been_loaded.discard(name)
        running = self._running.pop(name, None)
        if running is not None:
            running.stop()
            _shorten(running.log)

    def _stop_all(self) -> None:
        for name in list(self._running):
            self._stop(name)

    # Rounds.

    def _run_rounds(self, work: Work, servers: list[ServerKind]) -> None:
        warm: set[str] = set()
        for number in range(1, self._plan.rounds + self._plan.extra_rounds + 1):
            if number > self._plan.rounds and self._is_enough(work, servers):
                break
            for server in servers:
                if work.measure is Measure.START:
                    self._record(self._measure_start(server, work, number))
                    continue
                if self._plan.is_fresh:
                    warm.discard(server.name)
                    if not self._has_started(server, work, number):
                        continue
                running = self._running[server.name]
                if server.name not in warm:
                    self._warm_up(server, running, work)
                    warm.add(server.name)
                self._record(self._measure(server, running, work, number))
                if self._plan.is_fresh:
                    self._stop(server.name)

    def _is_enough(self, work: Work, servers: list[ServerKind]) -> bool:
        """Whether every server that can be measured was measured quietly often enough."""
        for server in servers:
            mine = self.results.of(work.id, server.name)
            quiet = sum(each.is_quiet for each in mine)
            is_hopeless = all(each.is_broken for each in mine)
            if quiet < self._plan.rounds and not is_hopeless:
                return False
        return True

    def _record(self, measurement: Measurement) -> None:
        self.results.measurements.append(measurement)
        self._say(line_of(measurement))

    def _warm_up(self, server: ServerKind, running: RunningServer, work: Work) -> None:
        seconds = self._plan.warmup_s
        if server.name not in self._has_been_loaded:
            self._has_been_loaded.add(server.name)
            # A plan without warm-up, as in a trial, means it.
            seconds += server.first_warmup_s if seconds else 0
        if seconds:
            with contextlib.suppress(LoadFailed):  # the measurement will say it
                self._load(server, running, work, seconds)

    # Measurements.

    def _measure(
        self, server: ServerKind, running: RunningServer, work: Work, number: int
    ) -> Measurement:
        found = Measurement(work.id, server.name, number)
        before = self._probe(server, running, work)
        if before:
            found.problem = f"before the load: {before}"
            return found
        try:
            with IdleConnections.open(
                "127.0.0.1", running.ports.http, work.idle_connections
            ) as idle:
                self._measure_load(server, running, work, found)
                memory = running.tree.memory()
                if work.idle_connections:
                    left = found.idle_connections_left = idle.still_open()
                    if left < work.idle_connections:
                        found.problem = f"{work.idle_connections - left} idle connections closed"
        except (LoadFailed, OSError) as error:
            found.problem = str(error)
            return found
        found.pss_mib, found.processes = memory.pss_mib, memory.processes
        after = self._probe(server, running, work)
        if after:
            found.problem = f"after the load: {after}"
        return found

    def _measure_load(
        self, server: ServerKind, running: RunningServer, work: Work, found: Measurement
    ) -> None:
        calibration_ms = self._calibrate()
        timed = None
        with self._watch(running) as window:
            outcome = self._load(server, running, work, self._plan.seconds)
        if work.measure is Measure.STREAM:
            # After the load that counts CPU time, since the client that times chunks is slower.
            timed = self._load_timed(server, running, work)
        calibration_ms = max(calibration_ms, self._calibrate())
        _note_outcome(found, outcome)
        if timed is not None:
            found.first_chunk_p50_ms = timed.first_chunk_p50_ms
            found.first_chunk_p99_ms = timed.first_chunk_p99_ms
            found.chunks_per_s = timed.chunks / timed.seconds if timed.seconds else None
            found.failures += timed.failures
            found.failure_kinds = " ".join(filter(None, [found.failure_kinds, _kinds(timed)]))
        self._note_window(found, window, calibration_ms)
        if outcome.requests:
            found.cpu_us_per_request = window.server_us / outcome.requests

    def _measure_start(self, server: ServerKind, work: Work, number: int) -> Measurement:
        calibration_ms = self._calibrate()
        window = Window()
        times = machine.machine_times(), machine.own_cpu_s(), time.monotonic()
        try:
            running = self._start(server, work)
        except (StartFailed, OSError) as error:
            return _failed_start(server, work, number, error)
        try:
            self._fill(window, *times, server_s=running.tree.cpu_s())
            time.sleep(self._plan.settle_s)
            memory = running.tree.memory()
            idle_from = running.tree.cpu_s()
            time.sleep(_IDLE_S)
            idle_s = running.tree.cpu_s() - idle_from
            problem = self._probe(server, running, work)
        finally:
            self._stop(server.name)
        found = Measurement(
            work.id,
            server.name,
            number,
            start_s=running.start_s,
            pss_mib=memory.pss_mib,
            processes=memory.processes,
            idle_cpu_percent=idle_s / _IDLE_S * 100,
        )
        if problem:
            # It did not stay up, so nothing of the above is its usual state.
            return _failed_start(server, work, number, StartFailed(problem))
        self._note_window(found, window, calibration_ms)
        return found

    def _load(
        self, server: ServerKind, running: RunningServer, work: Work, seconds: float
    ) -> Outcome:
        if work.measure is Measure.GRPC:
            return self._call_grpc(server, running, work, work.connections, seconds)
        if (own := server.load(running, work, seconds)) is not None:
            return own
        return self._clients.http(
            running.ports.http,
            server.request(work),
            connections=work.connections,
            seconds=seconds,
        )

    def _load_timed(self, server: ServerKind, running: RunningServer, work: Work) -> Outcome:
        return self._clients.http_asyncio(
            running.ports.http,
            server.request(work),
            payloads.answer(work.deployment.task, work.payload) or b"",
            connections=work.connections,
            seconds=self._plan.seconds,
        )

    def _call_grpc(
        self,
        server: ServerKind,
        running: RunningServer,
        work: Work,
        connections: int,
        seconds: float,
    ) -> Outcome:
        call = server.grpc_call(work)
        return self._clients.grpc(
            f"127.0.0.1:{running.ports.grpc}",
            call.method,
            call.message,
            call.answer,
            connections=connections,
            seconds=seconds,
        )

    def _probe(self, server: ServerKind, running: RunningServer, work: Work) -> str:
        """Ask once and look at the answer; "" if it is right."""
        if work.measure is not Measure.GRPC:
            return server.check(running, work, server.request(work))
        try:
            outcome = self._call_grpc(server, running, work, 1, 0)
        except LoadFailed as error:
            return str(error)
        return f"gRPC: {_kinds(outcome)}" if outcome.failures else ""

    # The machine.

    def _calibrate(self) -> float:
        took_ms = machine.calibrate()
        self._best_calibration_ms = min(self._best_calibration_ms, took_ms)
        return took_ms

    @contextlib.contextmanager
    def _watch(self, running: RunningServer) -> Iterator[Window]:
        window = Window()
        server_from = running.tree.cpu_s()
        times = machine.machine_times(), machine.own_cpu_s(), time.monotonic()
        yield window
        self._fill(window, *times, server_s=max(0.0, running.tree.cpu_s() - server_from))

    def _fill(
        self,
        window: Window,
        machine_from: MachineTimes,
        own_from: float,
        began: float,
        *,
        server_s: float,
    ) -> None:
        window.elapsed_s = time.monotonic() - began
        now = machine.machine_times()
        window.client_s = machine.own_cpu_s() - own_from
        window.server_s = server_s
        window.stolen_s = now.stolen_s - machine_from.stolen_s
        busy_s = now.busy_s - machine_from.busy_s
        window.foreign_s = max(0.0, busy_s - window.client_s - window.server_s)

    def _note_window(self, found: Measurement, window: Window, calibration_ms: float) -> None:
        found.server_cpu_s = window.server_s
        found.client_cpu_s = window.client_s
        found.foreign_cpu_s = window.foreign_s
        found.stolen_s = window.stolen_s
        found.calibration_ms = calibration_ms
        found.noise = "; ".join(
            machine.noise_reasons(
                self._plan.noise,
                elapsed_s=window.elapsed_s,
                foreign_s=window.foreign_s,
                stolen_s=window.stolen_s,
                slowdown=calibration_ms / self._best_calibration_ms,
                processors=os.cpu_count() or 1,
            )
        )


def _shorten(log: Path) -> None:
    """Keep the end: a server that logs every request writes a gigabyte in an hour."""
    if log.stat().st_size > _LOG_BYTES:
        with log.open("rb") as file:
            file.seek(-_LOG_BYTES, os.SEEK_END)
            end = file.read()
        log.write_bytes(b"[...] " + end.partition(b"\n")[2])


def _failed_start(server: ServerKind, work: Work, number: int, error: Exception) -> Measurement:
    return Measurement(work.id, server.name, number, problem=f"did not start: {error}")


def _note_outcome(found: Measurement, outcome: Outcome) -> None:
    found.client = outcome.client
    found.requests = outcome.requests
    found.seconds = outcome.seconds
    found.requests_per_s = outcome.requests_per_s
    found.failures = outcome.failures
    found.failure_kinds = _kinds(outcome)
    if outcome.requests and outcome.max_ms:
        found.p50_ms, found.p90_ms = outcome.p50_ms, outcome.p90_ms
        found.p99_ms, found.max_ms = outcome.p99_ms, outcome.max_ms


def _kinds(outcome: Outcome) -> str:
    return " ".join(f"{kind}={count}" for kind, count in sorted(outcome.errors.items()) if count)


def line_of(found: Measurement) -> str:
    """For the terminal, while it runs."""
    words = [f"  {found.round}  {found.server:<17}"]
    if found.requests_per_s is not None:
        words.append(f"{found.requests_per_s:>10,.1f}/s")
    for text, figure in (
        ("p50 {:.2f} ms", found.p50_ms),
        ("p99 {:.2f} ms", found.p99_ms),
        ("first chunk {:.2f} ms", found.first_chunk_p50_ms),
        ("{:,.0f} chunks/s", found.chunks_per_s),
        ("start {:.2f} s", found.start_s),
        ("CPU {:,.0f} us/request", found.cpu_us_per_request),
        ("PSS {:,.0f} MiB", found.pss_mib),
    ):
        if figure is not None:
            words.append(text.format(figure))
    if found.failures:
        words.append(f"FAILURES {found.failure_kinds}")
    if found.noise:
        words.append(f"[noisy: {found.noise}]")
    if found.problem:
        words.append(f"PROBLEM {found.problem}")
    return "  ".join(words)


def conditions(plan: Plan) -> dict[str, str]:
    return {
        **machine.describe_machine(),
        "HTTP client": wrk_version() or "built in (asyncio); wrk is not installed",
        "rounds": f"{plan.rounds} (and up to {plan.extra_rounds} more), {plan.seconds:g} s each",
        "warm-up": f"{plan.warmup_s:g} s",
        "servers run": "one at a time, started anew" if plan.is_fresh else "side by side, in turn",
        "noisy means": _limits(plan.noise),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _limits(limits: NoiseLimits) -> str:
    return (
        f"other programs above {limits.foreign:.0%} or stolen above {limits.stolen:.0%} of all "
        f"processors, or {limits.slowdown:g} times slower than the run's best calibration"
    )


def estimate_s(plan: Plan, servers: Mapping[str, Sequence[ServerKind]]) -> float:
    """About how long the plan takes if no round is noisy. servers: id of a work -> who does it."""
    one_start_s, overhead_s = 3.5, 0.3
    total = 0.0
    for works in by_deployment(plan.works):
        for number, work in enumerate(works):
            count = len(servers[work.id])
            first_warmup_s = sum(each.first_warmup_s for each in servers[work.id])
            if work.measure is Measure.START:
                total += plan.rounds * count * (one_start_s + plan.settle_s + _IDLE_S)
                continue
            loads = 2 if work.measure is Measure.STREAM else 1
            total += plan.rounds * count * (plan.seconds * loads + overhead_s)
            starts = plan.rounds if plan.is_fresh else int(number == 0)
            total += starts * (count * one_start_s + (first_warmup_s if plan.warmup_s else 0))
            total += (plan.rounds if plan.is_fresh else 1) * count * plan.warmup_s
    return total
