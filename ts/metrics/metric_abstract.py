"""What every metric kept in a cache has and can do."""

from __future__ import annotations

import abc
from typing import Any

from ts.metrics.metric_type_enum import MetricTypes
from ts.metrics.unit import long_unit


class MetricAbstract(abc.ABC):
    """A defined metric: name, long unit, dimension names and kind."""

    def __init__(
        self,
        metric_name: str,
        unit: str,
        dimension_names: list[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        self.metric_name = metric_name
        self.unit = long_unit(unit)
        self.dimension_names = [] if dimension_names is None else dimension_names
        self.metric_type = metric_type

    def __repr__(self) -> str:
        names = ",".join(map(str, self.dimension_names))
        kind = getattr(self.metric_type, "name", self.metric_type)
        return f"<{type(self).__name__} {self.metric_name}.{self.unit} {kind} [{names}]>"

    @abc.abstractmethod
    def add_or_update(
        self, value: float, dimension_values: list[Any] | None = None, request_id: str = ""
    ) -> None:
        """Record one value; `dimension_values` are in the order of `dimension_names`."""

    @abc.abstractmethod
    def update(
        self, value: float, request_id: str = "", dimensions: list[Any] | None = None
    ) -> None:
        """Record one value under the given Dimension objects (legacy form)."""
