"""A single named value with its dimensions (legacy API; system metrics collectors use it)."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from ts.metrics.caching_metric import HOSTNAME, CachingMetric
from ts.metrics.metric_type_enum import MetricTypes
from ts.metrics.unit import long_unit

if TYPE_CHECKING:
    from ts.metrics.dimension import Dimension


class Metric:
    """A value, its long unit and its dimensions. Creating one emits nothing."""

    def __init__(
        self,
        name: str,
        value: Any,
        unit: str | None,
        dimensions: list[Dimension],
        request_id: str | None = None,
        metric_method: str | None = None,
    ) -> None:
        self.name = name
        self.value = value
        self.unit = long_unit(unit)
        self.dimensions = dimensions
        self.dimension_names = [dimension.name for dimension in dimensions]
        self.dimension_values = [dimension.value for dimension in dimensions]
        self.request_id = request_id
        self.metric_method = metric_method
        self.metric_type = MetricTypes.COUNTER

    def update(self, value: Any) -> None:
        """Emit `value` as a counter line; `self.value` stays what it was.

        Text is emitted as it is, because error metrics may carry text.
        """
        line = CachingMetric(self.name, self.unit, self.dimension_names, self.metric_type)
        if isinstance(value, str):
            line.emit_metrics(self.request_id or "", value, self._dimension_text())  # type: ignore[arg-type]
        else:
            line.add_or_update(value, self.dimension_values, self.request_id or "")

    def reset(self) -> None:
        """Emit 0."""
        self.update(0)

    def __str__(self) -> str:
        """The line that the system metrics collector prints."""
        end = f",{self.request_id}" if self.request_id else ""
        return (
            f"{self.name}.{self.unit}:{self.value}|#{self._dimension_text()}"
            f"|#hostname:{HOSTNAME},{int(time.time())}{end}"
        )

    def to_dict(self) -> OrderedDict[str, Any]:
        """The metric as `MetricEncoder` writes it."""
        return OrderedDict(
            MetricName=self.name,
            Value=self.value,
            Unit=self.unit,
            Dimensions=self.dimensions,
            Timestamp=int(time.time()),
            HostName=HOSTNAME,
            RequestId=self.request_id,
        )

    def _dimension_text(self) -> str:
        return ",".join(str(dimension) for dimension in self.dimensions)
