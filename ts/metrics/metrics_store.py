"""The metrics object of before metrics were defined in a file (legacy API; MockContext has one)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.metric import Metric
from ts.metrics.metric_cache_abstract import SIZE_UNITS, TIME_UNITS


class MetricsStore:
    """Metrics by name, unit, request and dimensions.

    The first value given to a metric is only kept; later ones are emitted. Dimensions count for
    `add_counter` alone: the other methods take them, but only remember them as the metric's method.
    Code written for this class relies on the resulting cache keys, so it stays like that.
    """

    def __init__(self, request_ids: Mapping[int, str] | str | None, model_name: str | None) -> None:
        self.store: list[Metric] = []
        self.request_ids = request_ids
        self.model_name = model_name
        self.cache: dict[str, Metric] = {}

    def add_counter(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        dimensions: list[Dimension] | None = None,
    ) -> None:
        """Keep or emit an increment."""
        self._add(name, value, self._request_id(idx), "count", "counter", dimensions)

    def add_time(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: list[Dimension] | None = None,
    ) -> None:
        """Keep or emit a duration; unit is ms or s, otherwise ValueError."""
        if unit not in TIME_UNITS:
            raise ValueError(f"the unit for a timed metric should be one of {list(TIME_UNITS)}")
        self._add(name, value, self._request_id(idx), unit, dimensions)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: list[Dimension] | None = None,
    ) -> None:
        """Keep or emit a size; unit is MB, kB, GB or B, otherwise ValueError."""
        if unit not in SIZE_UNITS:
            raise ValueError(f"the unit for a size metric should be one of {list(SIZE_UNITS)}")
        self._add(name, value, self._request_id(idx), unit, dimensions)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        dimensions: list[Dimension] | None = None,
    ) -> None:
        """Keep or emit a percentage."""
        self._add(name, value, self._request_id(idx), "percent", dimensions)

    def add_error(self, name: str, value: Any, dimensions: list[Dimension] | None = None) -> None:
        """Keep or emit a metric at level Error; the value may be text."""
        self._add(name, value, None, "", dimensions)

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str,
        idx: int | None = None,
        dimensions: list[Dimension] | None = None,
    ) -> None:
        """Keep or emit a value in any unit."""
        self._add(name, value, self._request_id(idx), unit, dimensions)

    def _add(
        self,
        name: str,
        value: Any,
        request_id: str | None,
        unit: str,
        method: Any = None,
        dimensions: list[Dimension] | None = None,
    ) -> None:
        if request_id is None:
            defaults = [Dimension("Level", "Error")]
        else:
            defaults = [Dimension("ModelName", self.model_name), Dimension("Level", "Model")]
        filed_under = [*(dimensions or ()), *defaults]
        key = "-".join([name, unit, str(request_id), *map(str, filed_under)])
        known = self.cache.get(key)
        if known is not None:
            known.update(value)
            return
        metric = Metric(name, value, unit, filed_under, request_id, method)
        self.cache[key] = metric
        self.store.append(metric)

    def _request_id(self, idx: int | None) -> str | None:
        ids = self.request_ids
        if not isinstance(ids, Mapping):
            return None if ids is None else str(ids)
        if idx is not None and idx in ids:
            return ids[idx]
        return ",".join(ids.values())
