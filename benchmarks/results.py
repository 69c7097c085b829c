"""One row per measurement: what the report, the plots and the CSV file are made of."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.spread import Spread
from benchmarks.works import GROWTH_FAMILIES, Measure, Work

MEASUREMENTS_FILE = "measurements.csv"
RUN_FILE = "run.json"
CLIENT_BOUND = 0.9  # of a processor; the clients have one thread


@dataclass
class Measurement:
    """One server, one work, one round. A figure is None where it was not measured.

    noise: why not to trust it, "" if quiet. problem: why there are no figures, or what besides.
    """

    work: str
    server: str
    round: int
    client: str = ""
    requests: int | None = None
    seconds: float | None = None
    requests_per_s: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    failures: int = 0
    failure_kinds: str = ""
    first_chunk_p50_ms: float | None = None
    first_chunk_p99_ms: float | None = None
    chunks_per_s: float | None = None
    start_s: float | None = None
    idle_cpu_percent: float | None = None  # of one processor
    pss_mib: float | None = None
    processes: int | None = None
    cpu_us_per_request: float | None = None
    server_cpu_s: float | None = None
    client_cpu_s: float | None = None
    foreign_cpu_s: float | None = None
    stolen_s: float | None = None
    calibration_ms: float | None = None
    idle_connections_left: int | None = None
    noise: str = ""
    problem: str = ""

    @property
    def is_quiet(self) -> bool:
        return not self.noise and not self.is_broken

    @property
    def is_client_bound(self) -> bool:
        """Whether the client, and not the server, may be what was measured."""
        if not self.seconds or self.client_cpu_s is None:
            return False
        return self.client_cpu_s / self.seconds > CLIENT_BOUND

    @property
    def is_broken(self) -> bool:
        """Whether it has no figure that means anything."""
        return self.requests_per_s is None and self.start_s is None


class Figure(NamedTuple):
    """A column of the report. attribute: of Measurement."""

    attribute: str
    title: str
    is_more_better: bool


THROUGHPUT = Figure("requests_per_s", "requests/s", True)
P50 = Figure("p50_ms", "p50 ms", False)
P99 = Figure("p99_ms", "p99 ms", False)
CPU = Figure("cpu_us_per_request", "CPU µs/request", False)
PSS = Figure("pss_mib", "PSS MiB", False)
FIRST_CHUNK = Figure("first_chunk_p50_ms", "first chunk p50 ms", False)
CHUNKS = Figure("chunks_per_s", "chunks/s", True)
START = Figure("start_s", "start s", False)
IDLING = Figure("idle_cpu_percent", "idle CPU %", False)

FIGURES: dict[Measure, list[Figure]] = {
    Measure.LOAD: [THROUGHPUT, P50, P99, CPU, PSS],
    Measure.GRPC: [THROUGHPUT, P50, P99, CPU, PSS],
    Measure.STREAM: [THROUGHPUT, FIRST_CHUNK, CHUNKS, CPU, PSS],
    Measure.START: [START, PSS, IDLING],
}


class WorkInfo(NamedTuple):
    """What the report must know of a work, kept with the results."""

    id: str
    family: str
    title: str
    measure: str
    x: int | None

    @classmethod
    def of(cls, work: Work) -> WorkInfo:
        return cls(work.id, work.family, work.title, work.measure.value, work.x)

    @property
    def figures(self) -> list[Figure]:
        return FIGURES[Measure(self.measure)]

    @property
    def is_growth(self) -> bool:
        return self.family in GROWTH_FAMILIES


class Pairs(NamedTuple):
    """Ratios of two servers' figures, each of one round.

    quiet: how many pairs were measured quietly; if not 0, those are the spread's.
    """

    spread: Spread | None
    quiet: int
    all: int


@dataclass
class Results:
    """All that a run has found out.

    servers: column -> what it is, the first being the one that ratios are about.
    skipped: lines for the reader.
    conditions: name -> text, the machine and the plan.
    """

    servers: dict[str, str]
    works: list[WorkInfo]
    conditions: dict[str, str]
    skipped: list[str]
    measurements: list[Measurement]

    def spread(self, work: str, server: str, attribute: str) -> Spread | None:
        """Of the quiet rounds' figures; of all rounds' where none was quiet."""
        known = [
            (each.is_quiet, figure)
            for each in self.of(work, server)
            if (figure := getattr(each, attribute)) is not None
        ]
        quiet = [figure for is_quiet, figure in known if is_quiet]
        return Spread.of(quiet or [figure for _, figure in known])

    def pairs(self, work: str, ours: str, rival: str, attribute: str) -> Pairs:
        """ours/rival of the rounds in which both were quiet; of all rounds if there is none."""
        mine, theirs = self._by_round(work, ours), self._by_round(work, rival)
        both = [
            (a.is_quiet and b.is_quiet, figure / other)
            for number, a in mine.items()
            if (b := theirs.get(number))
            and (figure := getattr(a, attribute))
            and (other := getattr(b, attribute))
        ]
        quiet = [ratio for is_quiet, ratio in both if is_quiet]
        return Pairs(Spread.of(quiet or [ratio for _, ratio in both]), len(quiet), len(both))

    def _by_round(self, work: str, server: str) -> dict[int, Measurement]:
        return {each.round: each for each in self.of(work, server)}

    def of(self, work: str, server: str) -> list[Measurement]:
        return [each for each in self.measurements if (each.work, each.server) == (work, server)]

    def servers_of(self, work: str) -> list[str]:
        """Those that have any measurement of it, in the order of the columns."""
        having = {each.server for each in self.measurements if each.work == work}
        return [server for server in self.servers if server in having]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / MEASUREMENTS_FILE, self.measurements)
        run = {key: value for key, value in asdict(self).items() if key != "measurements"}
        run["works"] = [work._asdict() for work in self.works]
        (folder / RUN_FILE).write_text(json.dumps(run, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Results:
        """What `write` wrote. Raises OSError, ValueError."""
        run = json.loads((folder / RUN_FILE).read_text())
        run["works"] = [WorkInfo(**work) for work in run["works"]]
        return cls(**run, measurements=read_csv(folder / MEASUREMENTS_FILE))


def write_csv(path: Path, measurements: Iterable[Measurement]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [each.name for each in fields(Measurement)])
        writer.writeheader()
        for measurement in measurements:
            writer.writerow({name: _cell(value) for name, value in asdict(measurement).items()})


def read_csv(path: Path) -> list[Measurement]:
    with path.open(newline="", encoding="utf-8") as file:
        return [Measurement(**_values(row)) for row in csv.DictReader(file)]


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _values(row: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for each in fields(Measurement):
        text = row.get(each.name, "")
        kind = str(each.type)
        if kind == "str":
            values[each.name] = text
        elif text:
            values[each.name] = int(text) if kind.startswith("int") else float(text)
        elif kind == "int":
            values[each.name] = 0
        else:
            values[each.name] = None
    return values
