"""The metrics object that handlers use, apart from where its definitions come from."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from ts.metrics import metric_cache_errors as merrors
from ts.metrics.dimension import Dimension
from ts.metrics.metric_abstract import MetricAbstract
from ts.metrics.metric_type_enum import MetricTypes

TIME_UNITS = ("ms", "s")
SIZE_UNITS = ("MB", "kB", "GB", "B")


class MetricCacheAbstract(abc.ABC):
    """Defined metrics by kind and name, and the `add_*` methods that emit values.

    Every `add_*` call emits one line. The default dimensions (`ModelName`, `Level`) are appended
    to the given ones where their names are missing; the caller's list is left as it is. A metric
    that is not defined yet is defined by its first use, and a defined one keeps its own unit and
    dimension names: only the values count then, by position.
    """

    def __init__(self, config_file_path: str) -> None:
        # Configuration.
        self.config_file_path = config_file_path
        self.cache: dict[MetricTypes, dict[str, MetricAbstract]] = {}
        self.store: list[Any] = []  # always empty; the legacy store had it and code reads it
        # Per model.
        self.model_name: str | None = None
        # Per batch: {index: id}. While a model loads it is one text.
        self.request_ids: Mapping[int, str] | str | None = None

    @abc.abstractmethod
    def initialize_cache(self) -> None:
        """Define the metrics that the configuration lists."""

    @abc.abstractmethod
    def get_metric(
        self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER
    ) -> MetricAbstract:
        """The defined metric; raises MetricsCacheKeyError if there is none."""

    @abc.abstractmethod
    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: list[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> MetricAbstract:
        """Define a metric, or redefine it; emits nothing."""

    def set_request_ids(self, request_ids: Mapping[int, str] | str | None) -> None:
        """Name the requests of the batch that starts now."""
        self.request_ids = request_ids

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str,
        idx: int | None = None,
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        """Emit a value in any unit.

        idx: position in the batch of the request it belongs to; None means all of them.
        """
        self._emit(name, value, unit, idx, dimensions, metric_type)

    def add_counter(
        self, name: str, value: float, idx: int | None = None, dimensions: Sequence[Dimension] = ()
    ) -> None:
        """Emit an increment of a counter."""
        self._emit(name, value, "count", idx, dimensions, MetricTypes.COUNTER)

    def add_time(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Emit a duration; unit is ms or s, otherwise MetricsCacheValueError."""
        if unit not in TIME_UNITS:
            raise merrors.MetricsCacheValueError(
                f"the unit for a timed metric should be one of {list(TIME_UNITS)}, not {unit!r}"
            )
        self._emit(name, value, unit, idx, dimensions, metric_type)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Emit a size; unit is MB, kB, GB or B, otherwise ValueError."""
        if unit not in SIZE_UNITS:
            raise ValueError(
                f"the unit for a size metric should be one of {list(SIZE_UNITS)}, not {unit!r}"
            )
        self._emit(name, value, unit, idx, dimensions, metric_type)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Emit a percentage."""
        self._emit(name, value, "percent", idx, dimensions, metric_type)

    def add_error(self, name: str, value: float, dimensions: Sequence[Dimension] = ()) -> None:
        """Emit a counter at level Error, which belongs to no request."""
        names = [dimension.name for dimension in dimensions or ()]
        values = [dimension.value for dimension in dimensions or ()]
        if "Level" not in names:
            names.append("Level")
            values.append("Error")
        metric = self._find_or_define(name, "", names, MetricTypes.COUNTER)
        metric.add_or_update(value, values)

    def _emit(
        self,
        name: str,
        value: float,
        unit: str,
        idx: int | None,
        dimensions: Sequence[Dimension] | None,
        metric_type: MetricTypes,
    ) -> None:
        if dimensions:
            names = [dimension.name for dimension in dimensions]
            values = [dimension.value for dimension in dimensions]
            if "ModelName" not in names:
                names.append("ModelName")
                values.append(self.model_name)
            if "Level" not in names:
                names.append("Level")
                values.append("Model")
        else:
            names = ["ModelName", "Level"]
            values = [self.model_name, "Model"]
        metric = self._find_or_define(name, unit, names, metric_type)
        metric.add_or_update(value, values, self._request_id_text(idx))

    def _find_or_define(
        self, name: str, unit: str, dimension_names: list[str], metric_type: MetricTypes
    ) -> MetricAbstract:
        try:
            return self.get_metric(name, metric_type)
        except merrors.MetricsCacheKeyError:
            return self.add_metric_to_cache(name, unit, dimension_names, metric_type)

    def _request_id_text(self, idx: int | None) -> str:
        ids = self.request_ids
        if not ids:
            return ""
        if isinstance(ids, str):
            return ids
        if idx is not None and idx in ids:
            return ids[idx]
        return ",".join(ids.values())
