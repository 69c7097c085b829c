"""`ServerMetrics`: everything the server counts, and the two places where it can be read.

What happens once per request only adds to a series; its log lines are written by `flush_log`, at
most one per series and second, with what was added since. TorchServe writes one line per request,
which costs more than the request. What happens rarely (a worker's metric line, a system measure, a
load) is logged at once.

/metrics has all of it in every mode. In TorchServe it is empty in mode `log`, the default, which
its users take for a defect; a scrape that expected nothing is not harmed by getting something.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from ts_frontend.core.model import Model
from ts_frontend.metrics import catalog as own
from ts_frontend.metrics.catalog import HOSTNAME, MetricCatalog, MetricDefinition, MetricKind
from ts_frontend.metrics.log_format import model_line, server_line
from ts_frontend.metrics.prometheus import render
from ts_frontend.metrics.registry import (
    NEVER_LOGGED,
    HistogramSeries,
    LabelMismatch,
    Metric,
    MetricRegistry,
    Series,
)
from ts_frontend.metrics.worker_lines import WorkerMetric, metric_text, parse_metric_line

logger = logging.getLogger(__name__)

REQUESTS_TOTAL = "ts_inference_requests_total"
LATENCY_US = "ts_inference_latency_microseconds"
QUEUE_LATENCY_US = "ts_queue_latency_microseconds"
# In legacy mode these are for Prometheus only.
_NOT_LOGGED_IN_LEGACY = frozenset((REQUESTS_TOTAL, LATENCY_US, QUEUE_LATENCY_US))

# Filled on the hot path, so logged by `flush_log`.
_FLUSHED = (
    "Requests2XX",
    "Requests4XX",
    "Requests5XX",
    REQUESTS_TOTAL,
    LATENCY_US,
    QUEUE_LATENCY_US,
    "QueueTime",
    "WorkerThreadTime",
)
_FLUSH_INTERVAL_S = 1.0
_SHOWN_CHARACTERS = 300  # of a name or line from a worker
_MAX_REPORTS = 1000


class MetricsMode(enum.Enum):
    LOG = "log"
    PROMETHEUS = "prometheus"
    LEGACY = "legacy"


class ModelMeters:
    """What one model version counts per request; `model_version` may be "default"."""

    __slots__ = ("latency_seconds", "latency_us", "queue_us", "requests")

    def __init__(
        self,
        requests: Series,
        latency_us: Series,
        queue_us: Series,
        latency_seconds: HistogramSeries,
    ) -> None:
        self.requests = requests
        self.latency_us = latency_us
        self.queue_us = queue_us
        self.latency_seconds = latency_seconds


class TrialMeters:
    """What one of two versions counts while one of them is on trial."""

    __slots__ = ("answered", "failed")

    def __init__(self, answered: Series, failed: Series) -> None:
        self.answered = answered
        self.failed = failed


class ServerMetrics:
    """Counts, logs and renders; used from the event loop only.

    write_server_line, write_model_line: append a line to ts_metrics.log and model_metrics.log.
    on_scrape: called before each rendering, to set the gauges that are looked up, not counted.
    """

    def __init__(
        self,
        catalog: MetricCatalog,
        hostname: str,
        mode: MetricsMode = MetricsMode.LOG,
        *,
        is_auto_detecting: bool = False,
        write_server_line: Callable[[str], None] = lambda line: None,
        write_model_line: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.hostname = hostname
        self.mode = mode
        self.on_scrape: list[Callable[[], None]] = []
        self.registry = MetricRegistry()
        self._server_definitions = dict(catalog.server)
        self._model_definitions = dict(catalog.model)
        self._is_auto_detecting = is_auto_detecting
        self._write_server_line = write_server_line
        self._write_model_line = write_model_line
        self._clock = clock
        self._reported: set[str] = set()
        for definition in (*own.OWN_METRICS, *catalog.server.values(), *catalog.model.values()):
            if not self.registry.define(definition):
                logger.error(
                    "Metric %s is defined already; the second is not used.", definition.name
                )
        # Looked up by the hundreds of a status; what is neither 2xx, 4xx nor 5xx counts nowhere.
        nowhere = Series()
        self._by_status = [nowhere] * 10
        for hundreds in (2, 4, 5):
            self._by_status[hundreds] = self._child(
                self.registry.counter(f"Requests{hundreds}XX"), "Host", hostname
            )
        self._queue_time: Series | None = None
        self._worker_thread_time: Series | None = None

    # Per request and per batch.

    def on_response(self, status: int, seconds: float) -> None:
        """An HTTP answer of any listener; `seconds` is not recorded here, but per model."""
        self._by_status[status // 100].value += 1

    def model_meters(self, name: str, version: str) -> ModelMeters:
        """To be kept with the model. version: "default" for requests that name none."""
        return ModelMeters(
            self.inference_requests(name, version),
            self.inference_latency_us(name, version),
            self.queue_latency_us(name, version),
            self.registry.histogram(own.LATENCY_SECONDS.name).child(name, version),
        )

    def inference_requests(self, name: str, version: str) -> Series:
        return self._child(self.registry.counter(REQUESTS_TOTAL), name, version, self.hostname)

    def inference_latency_us(self, name: str, version: str) -> Series:
        return self._child(self.registry.counter(LATENCY_US), name, version, self.hostname)

    def queue_latency_us(self, name: str, version: str) -> Series:
        return self._child(self.registry.counter(QUEUE_LATENCY_US), name, version, self.hostname)

    def batch(self, queue_ms: float, worker_thread_ms: float) -> None:
        """How long the last job of a batch waited, and what the batch cost the frontend itself."""
        self.queue_time_ms(queue_ms)
        self.worker_thread_time_ms(worker_thread_ms)

    def queue_time_ms(self, milliseconds: float) -> None:
        # Made at the first value: a gauge that was never set is not shown.
        if self._queue_time is None:
            self._queue_time = self._child(self.registry.gauge("QueueTime"), "Host", self.hostname)
        self._queue_time.value = int(milliseconds)
        self._queue_time.logged = NEVER_LOGGED

    def worker_thread_time_ms(self, milliseconds: float) -> None:
        if self._worker_thread_time is None:
            self._worker_thread_time = self._child(
                self.registry.gauge("WorkerThreadTime"), "Host", self.hostname
            )
        self._worker_thread_time.value = int(milliseconds)
        self._worker_thread_time.logged = NEVER_LOGGED

    # What happens rarely.

    def loaded(self, worker_name: str, load_ms: float) -> None:
        self._record_server("WorkerLoadTime", (worker_name, "Host"), int(load_ms))

    def died(self, model: Model, cause: str) -> None:
        """cause: one of few short texts."""
        self._count(own.WORKER_RESTARTS.name, *model.id, cause)

    def rerun(self, model: Model, reason: str, requests: int) -> None:
        self._count(own.RERUNS.name, *model.id, reason, by=requests)

    def quarantined(self, model: Model) -> None:
        self._count(own.QUARANTINED.name, *model.id)

    def trial_meters(self, name: str, version: str) -> TrialMeters:
        counter = self.registry.counter(own.ROLLOUT_REQUESTS.name)
        return TrialMeters(
            counter.child(name, version, "answered"), counter.child(name, version, "failed")
        )

    def set_canary_percent(self, name: str, version: str, percent: float) -> None:
        self.registry.gauge(own.ROLLOUT_CANARY.name).child(name, version).value = percent

    def rollout_ended(self, name: str, outcome: str) -> None:
        self._count(own.ROLLOUTS.name, name, outcome.lower())

    def _count(self, name: str, *labels: str, by: int = 1) -> None:
        self.registry.counter(name).child(*labels).value += by

    def set_queue_depth(self, name: str, version: str, waiting: int) -> None:
        self.registry.gauge(own.QUEUE_DEPTH.name).child(name, version).value = waiting

    def set_load(self, tasks: int, connections: int) -> None:
        self.registry.gauge(own.TASKS.name).child().value = tasks
        self.registry.gauge(own.CONNECTIONS.name).child().value = connections

    def set_workers(self, name: str, version: str, counts: Mapping[str, int], busy: int) -> None:
        """counts: by state; a state that was seen before and is not named now has none.

        busy: how many have requests on board.
        """
        self.registry.gauge(own.BUSY_WORKERS.name).child(name, version).value = busy
        gauge = self.registry.gauge(own.WORKERS.name)
        for series in gauge.series():
            if series.labels[:2] == (name, version):
                series.value = 0
        for state, count in counts.items():
            gauge.child(name, version, state).value = count

    def forget_model(self, name: str, version: str) -> None:
        """An unregistered version has no gauges any more; its counters stay, as counters do."""
        suffix = f"-{name}_{version}"
        for gauge in (own.QUEUE_DEPTH.name, own.WORKERS.name, own.BUSY_WORKERS.name):
            self.registry.gauge(gauge).forget(lambda labels: labels[:2] == (name, version))
        self.registry.gauge("WorkerLoadTime").forget(lambda labels: labels[0].endswith(suffix))

    def record_system(self, name: str, labels: Sequence[str], value: float) -> None:
        """A measure of the machine; labels without the host. Undefined names are ignored."""
        self._record_server(name, labels, value)

    def _record_server(self, name: str, labels: Sequence[str], value: float) -> None:
        definition = self._server_definitions.get(name)
        if definition is None:
            return
        values = self._fitted(definition, (*labels, self.hostname))
        if values is None:
            return
        self.registry.record(definition, values, value)
        if self._is_logged(name):
            self._write_server_line(self._server_line(definition, values, value))

    # Lines of workers.

    def worker_line(self, line: str) -> bool:
        """Take a line that a worker printed; True if it was a metric and needs no log line."""
        text = metric_text(line)
        if text is None:
            return False
        metric = parse_metric_line(text)
        if metric is None:
            logger.error("Failed to parse metrics line: %s", line[:_SHOWN_CHARACTERS])
        else:
            self.record_worker_metric(metric)
        return True

    def record_worker_metric(self, metric: WorkerMetric) -> None:
        definition = self._model_definitions.get(metric.name)
        if definition is None:
            definition = self._detected(metric)
            if definition is None:
                return
        # By position, whatever the names: that is how definition and line have always met.
        labels = (*(value for _, value in metric.dimensions), metric.hostname)
        try:
            self.registry.record(definition, labels, metric.value)
        except LabelMismatch as error:
            self._report_once(metric.name, str(error))
            if self.mode is MetricsMode.PROMETHEUS:
                return
        except ValueError as error:
            self._report_once(metric.name, str(error))
            return
        if self.mode is not MetricsMode.PROMETHEUS:
            self._write_model_line(
                model_line(
                    definition.name,
                    definition.unit,
                    metric.value,
                    definition.dimensions,
                    labels,
                    metric.request_ids,
                    int(self._clock()),
                )
            )

    def _detected(self, metric: WorkerMetric) -> MetricDefinition | None:
        if not self._is_auto_detecting:
            return None
        if metric.kind not in MetricKind.__members__:
            self._report_once(
                metric.name, f"it cannot be auto-detected: {metric.kind!r} is not a type"
            )
            return None
        definition = MetricDefinition(
            name=metric.name,
            kind=MetricKind[metric.kind],
            unit=metric.unit,
            dimensions=(*(name for name, _ in metric.dimensions), HOSTNAME),
        )
        if not self.registry.define(definition):
            self._report_once(
                metric.name,
                "it cannot be auto-detected: the server has one of that name, or too many",
            )
            return None
        self._model_definitions[metric.name] = definition
        return definition

    # Reading.

    def render(self, names: Collection[str] = ()) -> str:
        """The body of /metrics. names: the samples that are wanted, all if empty."""
        for set_gauges in self.on_scrape:
            set_gauges()
        return render(self.registry, names)

    def flush_log(self) -> None:
        """Write what requests have added since the last time: counters the sum, gauges the last."""
        for name in _FLUSHED:
            definition = self._server_definitions.get(name)
            if definition is None or not self._is_logged(name):
                continue
            is_counter = definition.kind is MetricKind.COUNTER
            for series in self.registry.counter(name).series():
                value = series.value
                if value == series.logged:
                    continue
                shown = value - series.logged if is_counter else value
                series.logged = value
                self._write_server_line(self._server_line(definition, series.labels, shown))

    async def run(self) -> None:
        """Flush the log once a second until cancelled, and a last time then."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_INTERVAL_S)
                self.flush_log()
        finally:
            self.flush_log()

    def _server_line(
        self, definition: MetricDefinition, labels: Sequence[str], value: float
    ) -> str:
        return server_line(
            definition.name,
            definition.unit,
            value,
            definition.dimensions,
            labels,
            int(self._clock()),
        )

    def _is_logged(self, name: str) -> bool:
        if self.mode is MetricsMode.LEGACY:
            return name not in _NOT_LOGGED_IN_LEGACY
        return self.mode is MetricsMode.LOG

    def _child(self, metric: Metric[Series], *labels: str) -> Series:
        values = self._fitted(metric.definition, labels) if metric.definition.name else labels
        return Series() if values is None else metric.child(*values)

    def _fitted(
        self, definition: MetricDefinition, labels: tuple[str, ...]
    ) -> tuple[str, ...] | None:
        """The values for the dimensions that a user's definition has left, None if it has more."""
        if len(definition.dimensions) > len(labels):
            self._report_once(
                definition.name,
                f"the server has the values {list(labels)}, "
                f"not one for each of {list(definition.dimensions)}",
            )
            return None
        return labels[: len(definition.dimensions)]

    def _report_once(self, name: str, reason: str) -> None:
        # Workers repeat themselves with each request, and may invent names.
        if name not in self._reported and len(self._reported) < _MAX_REPORTS:
            self._reported.add(name)
            logger.error("Metric %s is not counted: %s", name[:_SHOWN_CHARACTERS], reason)
