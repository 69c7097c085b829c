"""The text that /metrics answers: Prometheus' format 0.0.4.

Written here rather than with `prometheus_client`, because the names and numbers are a contract
(runtime document, section 5, "Prometheus text"): that library appends `_total` to counters and adds
`_created` series, where TorchServe's dashboards expect `Requests2XX` and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence

from ts_frontend.metrics.catalog import MetricDefinition
from ts_frontend.metrics.log_format import java_double
from ts_frontend.metrics.registry import HistogramSeries, Metric, MetricRegistry, Series

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


def render(registry: MetricRegistry, names: Collection[str] = ()) -> str:
    """All metrics; with `names`, only the samples so called, and only families that have some.

    A histogram's samples are `x_bucket`, `x_sum` and `x_count`; its own name selects nothing.
    """
    is_wanted: Callable[[str], bool] = names.__contains__ if names else (lambda _: True)
    lines: list[str] = []
    for metric in registry.values():
        _add_family(lines, metric.definition, _value_samples(metric, is_wanted), bool(names))
    for histogram in registry.histograms():
        _add_family(
            lines, histogram.definition, _histogram_samples(histogram, is_wanted), bool(names)
        )
    return "\n".join(lines) + "\n" if lines else ""


def _add_family(
    lines: list[str], definition: MetricDefinition, samples: Iterator[str], is_filtered: bool
) -> None:
    if not definition.is_exportable:
        return
    rows = list(samples)
    if is_filtered and not rows:
        return
    kind = definition.kind.value
    help_text = (
        definition.help or f"Torchserve prometheus {kind} metric with unit: {definition.unit}"
    )
    help_text = help_text.replace("\\", "\\\\").replace("\n", "\\n")
    lines.append(f"# HELP {definition.name} {help_text}")
    lines.append(f"# TYPE {definition.name} {kind}")
    lines += rows


def _value_samples(metric: Metric[Series], is_wanted: Callable[[str], bool]) -> Iterator[str]:
    definition = metric.definition
    if is_wanted(definition.name):
        for series in metric.series():
            labels = _labels(definition.dimensions, series.labels)
            yield f"{_sample_name(definition.name, labels)} {_number(series.value)}"


def _histogram_samples(
    metric: Metric[HistogramSeries], is_wanted: Callable[[str], bool]
) -> Iterator[str]:
    name = metric.definition.name
    for series in metric.series():
        labels = _labels(metric.definition.dimensions, series.labels)
        total = 0
        rows = []
        for bound, count in zip((*series.bounds, math.inf), series.bucket_counts, strict=True):
            total += count
            row = _sample_name(f"{name}_bucket", f'{labels}le="{_number(bound)}",')
            rows.append(f"{row} {_number(total)}")
        if is_wanted(f"{name}_bucket"):
            yield from rows
        if is_wanted(f"{name}_count"):
            yield f"{_sample_name(f'{name}_count', labels)} {_number(total)}"
        if is_wanted(f"{name}_sum"):
            yield f"{_sample_name(f'{name}_sum', labels)} {_number(series.sum)}"


def _sample_name(name: str, labels: str) -> str:
    return f"{name}{{{labels}}}" if labels else name


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    # With a comma after the last pair too, as TorchServe writes it.
    return "".join(f'{name}="{_escape(value)}",' for name, value in zip(names, values, strict=True))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return java_double(value)
