"""Where values are kept: metrics by name, series by label values.

Counting must cost next to nothing, so a series is a bare object whose `value` its user adds to
(`series.value += 1`); everything else happens when somebody scrapes or the log is written. All of
it runs on the event loop, so there are no locks.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ts_frontend.metrics.catalog import MetricDefinition, MetricKind

logger = logging.getLogger(__name__)

# A handler that puts a request id into a dimension must not fill the server's memory.
MAX_SERIES_PER_METRIC = 10_000
MAX_METRICS = 2_000

NEVER_LOGGED = math.nan


class Series:
    """One counter or gauge.

    value:  the count, or the last measure.
    logged: how much of a count, or which measure, the metric log already has.
    """

    __slots__ = ("labels", "logged", "value")

    def __init__(self, labels: tuple[str, ...] = (), logged: float = 0.0) -> None:
        self.labels = labels
        self.value: float = 0.0
        self.logged = logged

    def __repr__(self) -> str:
        return f"<Series {self.labels} value={self.value}>"


class HistogramSeries:
    """bucket_counts: one per bound and one for what lies beyond the last; not cumulative."""

    __slots__ = ("bounds", "bucket_counts", "labels", "sum")

    def __init__(self, labels: tuple[str, ...] = (), bounds: tuple[float, ...] = ()) -> None:
        self.labels = labels
        self.bounds = bounds
        self.bucket_counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.bucket_counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def __repr__(self) -> str:
        return f"<HistogramSeries {self.labels} count={sum(self.bucket_counts)} sum={self.sum}>"


class LabelMismatch(ValueError):
    """As many label values as the metric has dimensions are needed."""


AnySeries = TypeVar("AnySeries")  # Series or HistogramSeries


class Metric(Generic[AnySeries]):
    """All series of one definition, in the order of their first use."""

    def __init__(
        self,
        definition: MetricDefinition,
        new_series: Callable[[tuple[str, ...]], AnySeries],
    ) -> None:
        self.definition = definition
        self._new_series = new_series
        self._series: dict[tuple[str, ...], AnySeries] = {}
        self._is_full = False

    def __repr__(self) -> str:
        return f"<Metric {self.definition.name} series={len(self._series)}>"

    def child(self, *labels: str) -> AnySeries:
        """The series of these label values; keep it where it is used often.

        Beyond MAX_SERIES_PER_METRIC a new series counts for nobody.
        Raises LabelMismatch.
        """
        series = self._series.get(labels)
        if series is not None:
            return series
        if len(labels) != len(self.definition.dimensions):
            raise LabelMismatch(
                f"{self.definition.name} has the dimensions {list(self.definition.dimensions)}, "
                f"not the values {list(labels)}"
            )
        series = self._new_series(labels)
        if len(self._series) < MAX_SERIES_PER_METRIC:
            self._series[labels] = series
        elif not self._is_full:
            self._is_full = True
            logger.error(
                "Metric %s has %d series; values for further dimensions are dropped.",
                self.definition.name,
                MAX_SERIES_PER_METRIC,
            )
        return series

    def series(self) -> Iterator[AnySeries]:
        return iter(self._series.values())

    def forget(self, should_forget: Callable[[tuple[str, ...]], bool]) -> None:
        """Drop the series of what is no longer there (a model that was unregistered)."""
        for labels in [labels for labels in self._series if should_forget(labels)]:
            del self._series[labels]


class _NullMetric(Metric[AnySeries]):
    """Stands in for a metric that nobody defined: it can be counted and is never shown."""

    def child(self, *labels: str) -> AnySeries:
        return self._new_series(labels)


def _new_counter(labels: tuple[str, ...]) -> Series:
    return Series(labels)


def _new_gauge(labels: tuple[str, ...]) -> Series:
    return Series(labels, NEVER_LOGGED)


_NULL_DEFINITION = MetricDefinition(name="", kind=MetricKind.GAUGE, unit="")
_NULL_METRIC: Metric[Series] = _NullMetric(_NULL_DEFINITION, _new_gauge)
_NULL_HISTOGRAM: Metric[HistogramSeries] = _NullMetric(_NULL_DEFINITION, HistogramSeries)


class MetricRegistry:
    """Metrics by name; a metric that was never defined counts into the void."""

    def __init__(self) -> None:
        self._values: dict[str, Metric[Series]] = {}
        self._histograms: dict[str, Metric[HistogramSeries]] = {}

    def __repr__(self) -> str:
        return f"<MetricRegistry metrics={len(self._values) + len(self._histograms)}>"

    def define(self, definition: MetricDefinition) -> bool:
        """False, and nothing changes, if the name is taken or there are too many metrics."""
        name = definition.name
        if name in self._values or name in self._histograms:
            return False
        if len(self._values) + len(self._histograms) >= MAX_METRICS:
            return False
        if definition.kind is MetricKind.HISTOGRAM:
            bounds = definition.buckets
            self._histograms[name] = Metric(
                definition, lambda labels: HistogramSeries(labels, bounds)
            )
        else:
            is_counter = definition.kind is MetricKind.COUNTER
            self._values[name] = Metric(definition, _new_counter if is_counter else _new_gauge)
        return True

    def counter(self, name: str) -> Metric[Series]:
        return self._values.get(name, _NULL_METRIC)

    def gauge(self, name: str) -> Metric[Series]:
        return self._values.get(name, _NULL_METRIC)

    def histogram(self, name: str) -> Metric[HistogramSeries]:
        return self._histograms.get(name, _NULL_HISTOGRAM)

    def values(self) -> Iterator[Metric[Series]]:
        return iter(self._values.values())

    def histograms(self) -> Iterator[Metric[HistogramSeries]]:
        return iter(self._histograms.values())

    def record(self, definition: MetricDefinition, labels: tuple[str, ...], value: float) -> None:
        """One measure from outside the hot path: adds to a counter, sets a gauge, observes.

        Raises LabelMismatch; ValueError for a counter that would go down.
        """
        if definition.kind is MetricKind.HISTOGRAM:
            self.histogram(definition.name).child(*labels).observe(value)
        elif definition.kind is MetricKind.GAUGE:
            self.gauge(definition.name).child(*labels).value = value
        elif value < 0:
            raise ValueError(f"counter {definition.name} cannot take the negative value {value}")
        else:
            self.counter(definition.name).child(*labels).value += value
