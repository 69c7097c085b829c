"""Kinds of metric, spelt as in the metrics file."""

import enum


class MetricTypes(enum.Enum):
    """What the values of a metric mean."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
