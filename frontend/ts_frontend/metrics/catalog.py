"""Which metrics there are: the definition file (`metrics_config`), and the server's own.

Source of the file's form: contract, runtime document, section 5, "Definition file".
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

# Those of the Prometheus client for Java, which TorchServe's histograms have.
DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
HOSTNAME = "Hostname"

_EXPORTABLE_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_EXPORTABLE_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class MetricKind(enum.Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class MetricDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """dimensions: the names of the labels; of a model's metric the last one is `Hostname`."""

    name: str
    kind: MetricKind
    unit: str
    dimensions: tuple[str, ...] = ()
    help: str = ""
    buckets: tuple[float, ...] = DEFAULT_BUCKETS

    @property
    def is_exportable(self) -> bool:
        """The definition file allows names (with blanks, say) that Prometheus' text cannot hold."""
        return bool(_EXPORTABLE_NAME.fullmatch(self.name)) and all(
            _EXPORTABLE_LABEL.fullmatch(dimension) for dimension in self.dimensions
        )


class MetricCatalog(msgspec.Struct, frozen=True):
    """The definitions by name: those the server fills, and those that handlers fill."""

    server: Mapping[str, MetricDefinition] = {}
    model: Mapping[str, MetricDefinition] = {}


class CatalogError(Exception):
    """The definition file cannot be used; TorchServe then runs without metrics."""


def read_catalog(path: str) -> MetricCatalog:
    """The catalog in the file. Raises CatalogError, which says what is wrong where."""
    try:
        with open(path, "rb") as file:
            document = yaml.safe_load(file)
    except OSError as error:
        raise CatalogError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise CatalogError(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise CatalogError(f"{path}: a map with ts_metrics and model_metrics is expected")
    try:
        return MetricCatalog(
            server=_read_section(document, "ts_metrics", ()),
            model=_read_section(document, "model_metrics", (HOSTNAME,)),
        )
    except CatalogError as error:
        raise CatalogError(f"{path}: {error}") from error


def _read_section(
    document: Mapping[str, Any], section: str, added_dimensions: tuple[str, ...]
) -> dict[str, MetricDefinition]:
    definitions: dict[str, MetricDefinition] = {}
    kinds = document.get(section) or {}
    if not isinstance(kinds, dict):
        raise CatalogError(f"{section}: a map of counter, gauge and histogram is expected")
    for kind_name, entries in kinds.items():
        try:
            kind = MetricKind(kind_name)
        except ValueError:
            raise CatalogError(
                f"{section}: {kind_name!r} is not one of counter, gauge, histogram"
            ) from None
        for entry in entries or []:
            definition = _read_entry(entry, kind, f"{section}.{kind_name}", added_dimensions)
            if definition.name in definitions:
                # Lines of handlers name a metric without its kind, so a name must be unique.
                raise CatalogError(f"{section}: {definition.name} is defined twice")
            definitions[definition.name] = definition
    return definitions


def _read_entry(
    entry: Any, kind: MetricKind, where: str, added_dimensions: tuple[str, ...]
) -> MetricDefinition:
    if not isinstance(entry, dict):
        raise CatalogError(f"{where}: {entry!r} is not a map of name, unit and dimensions")
    name, unit = entry.get("name"), entry.get("unit")
    if not isinstance(name, str) or not name:
        raise CatalogError(f"{where}: an entry has no name")
    if not isinstance(unit, str):
        raise CatalogError(f"{where}: {name} has no unit")
    dimensions = entry.get("dimensions") or []
    if not isinstance(dimensions, list) or not all(isinstance(d, str) for d in dimensions):
        raise CatalogError(f"{where}: the dimensions of {name} are not a list of names")
    return MetricDefinition(
        name=name, kind=kind, unit=unit, dimensions=(*dimensions, *added_dimensions)
    )


# The server's own, beyond TorchServe's. They are not in the definition file, so that a file written
# for TorchServe keeps working and still shows them.
QUEUE_DEPTH = MetricDefinition(
    name="ts_queue_depth",
    kind=MetricKind.GAUGE,
    unit="Count",
    dimensions=("model_name", "model_version"),
    help="Requests that wait for a worker.",
)
WORKERS = MetricDefinition(
    name="ts_workers",
    kind=MetricKind.GAUGE,
    unit="Count",
    dimensions=("model_name", "model_version", "state"),
    help="Workers of a model version by state.",
)
BUSY_WORKERS = MetricDefinition(
    name="ts_busy_workers",
    kind=MetricKind.GAUGE,
    unit="Count",
    dimensions=("model_name", "model_version"),
    help="Workers of a model version that have requests on board.",
)
WORKER_RESTARTS = MetricDefinition(
    name="ts_worker_restarts_total",
    kind=MetricKind.COUNTER,
    unit="Count",
    dimensions=("model_name", "model_version", "cause"),
    help="Workers that ended or were ended without being asked to, by cause.",
)
RERUNS = MetricDefinition(
    name="ts_rerun_requests_total",
    kind=MetricKind.COUNTER,
    unit="Count",
    dimensions=("model_name", "model_version", "reason"),
    help="Requests that ran again, after the death of a worker or the failure of a batch.",
)
QUARANTINED = MetricDefinition(
    name="ts_quarantined_requests_total",
    kind=MetricKind.COUNTER,
    unit="Count",
    dimensions=("model_name", "model_version"),
    help="Requests that were given up, since too many workers died while they ran them.",
)
LATENCY_SECONDS = MetricDefinition(
    name="ts_inference_latency_seconds",
    kind=MetricKind.HISTOGRAM,
    unit="Seconds",
    dimensions=("model_name", "model_version"),
    help="Time from the arrival of a request to the end of its answer.",
    # From a small model on a CPU to a long generation.
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
TASKS = MetricDefinition(
    name="ts_event_loop_tasks",
    kind=MetricKind.GAUGE,
    unit="Count",
    help="Tasks of the server's event loop; a number that only grows is a leak.",
)
CONNECTIONS = MetricDefinition(
    name="ts_http_connections",
    kind=MetricKind.GAUGE,
    unit="Count",
    help="Open HTTP connections of all listeners.",
)
ROLLOUTS = MetricDefinition(
    name="ts_rollouts_total",
    kind=MetricKind.COUNTER,
    unit="Count",
    dimensions=("model_name", "outcome"),
    help="Rollouts of new versions that have ended, by outcome.",
)
ROLLOUT_CANARY = MetricDefinition(
    name="ts_rollout_canary_percent",
    kind=MetricKind.GAUGE,
    unit="Percent",
    dimensions=("model_name", "model_version"),
    help="Share of the requests without a version that a version on trial answers.",
)
ROLLOUT_REQUESTS = MetricDefinition(
    name="ts_rollout_requests_total",
    kind=MetricKind.COUNTER,
    unit="Count",
    dimensions=("model_name", "model_version", "result"),
    help="Requests of the two versions while one is on trial, answered or failed.",
)
OWN_METRICS = (
    ROLLOUTS,
    ROLLOUT_CANARY,
    ROLLOUT_REQUESTS,
    TASKS,
    CONNECTIONS,
    QUEUE_DEPTH,
    WORKERS,
    BUSY_WORKERS,
    WORKER_RESTARTS,
    RERUNS,
    QUARANTINED,
    LATENCY_SECONDS,
)
