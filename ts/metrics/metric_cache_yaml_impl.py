"""The metrics object whose definitions come from a YAML file: `context.metrics`."""

from __future__ import annotations

import logging
from typing import Any

import yaml

from ts.metrics import metric_cache_errors as merrors
from ts.metrics.caching_metric import CachingMetric
from ts.metrics.metric_cache_abstract import MetricCacheAbstract
from ts.metrics.metric_type_enum import MetricTypes

logger = logging.getLogger(__name__)

MODEL_SECTION = "model_metrics"


class MetricsCacheYamlImpl(MetricCacheAbstract):
    """Metrics defined by the `model_metrics` section of a metrics file.

    The constructor reads the file, `initialize_cache` defines the metrics; both raise the errors of
    `ts.metrics.metric_cache_errors`.
    """

    cache: dict[MetricTypes, dict[str, CachingMetric]]  # type: ignore[assignment]

    def __init__(self, config_file_path: str) -> None:
        super().__init__(config_file_path)
        self._config = _read_yaml(config_file_path)

    def initialize_cache(self) -> None:
        """Define every metric of the file's `model_metrics` section.

        Raises MetricsCacheKeyError, MetricsCacheValueError or MetricsCacheTypeError, naming what
        the file has wrong.
        """
        for type_name, entries in self._model_section().items():
            try:
                metric_type = MetricTypes(type_name)
            except ValueError as error:
                raise merrors.MetricsCacheKeyError(
                    f"Invalid metric type: {type_name!r} in {self.config_file_path}; "
                    f"use one of {[kind.value for kind in MetricTypes]}"
                ) from error
            if not isinstance(entries or [], list):
                raise merrors.MetricsCacheTypeError(
                    f"`{MODEL_SECTION}.{type_name}` of {self.config_file_path} must be a list"
                )
            for entry in entries or []:
                self._define(entry, metric_type)

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: list[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> CachingMetric:
        """Define a metric and return it; a second definition replaces the first with a warning.

        Emits nothing and adds no default dimensions.
        Raises MetricsCacheTypeError for an argument of the wrong type.
        """
        _check_key(metric_name, metric_type)
        if not isinstance(unit, str | None):
            raise merrors.MetricsCacheTypeError("`unit` must be a str")
        if not isinstance(dimension_names, list | None):
            raise merrors.MetricsCacheTypeError(
                "`dimension_names` should be a list of dimension name strings"
            )
        of_type = self.cache.setdefault(metric_type, {})
        if metric_name in of_type:
            logger.warning("Overriding existing key %s:%s", metric_type, metric_name)
        metric = CachingMetric(
            metric_name=metric_name,
            unit=unit,
            dimension_names=list(dimension_names or ()),
            metric_type=metric_type,
        )
        of_type[metric_name] = metric
        return metric

    def get_metric(
        self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER
    ) -> CachingMetric:
        """The defined metric; raises MetricsCacheKeyError if there is none."""
        try:
            return self.cache[metric_type][metric_name]
        except (KeyError, TypeError) as error:
            _check_key(metric_name, metric_type)
            raise merrors.MetricsCacheKeyError(
                f"Metric of type '{metric_type}' and name '{metric_name}' doesn't exist"
            ) from error

    def cache_keys(self) -> list[str]:
        """Every defined metric as `<type>:<name>`."""
        return [f"{kind.value}:{name}" for kind, metrics in self.cache.items() for name in metrics]

    def _model_section(self) -> dict[str, Any]:
        if not isinstance(self._config, dict) or MODEL_SECTION not in self._config:
            raise merrors.MetricsCacheKeyError(
                f"'{MODEL_SECTION}' key not found in yaml file {self.config_file_path}"
            )
        section = self._config[MODEL_SECTION]
        if not section:
            raise merrors.MetricsCacheValueError(f"Missing `{MODEL_SECTION}` specification")
        if not isinstance(section, dict):
            raise merrors.MetricsCacheTypeError(
                f"`{MODEL_SECTION}` of {self.config_file_path} must map metric types to lists"
            )
        return section

    def _define(self, entry: Any, metric_type: MetricTypes) -> None:
        if not isinstance(entry, dict):
            raise merrors.MetricsCacheTypeError(
                f"an entry of `{MODEL_SECTION}.{metric_type.value}` in {self.config_file_path} "
                f"must have `name`, `unit` and `dimensions`, found {entry!r}"
            )
        try:
            name, unit, dimensions = entry["name"], entry["unit"], entry["dimensions"]
        except KeyError as error:
            raise merrors.MetricsCacheKeyError(
                f"Key not found in cache spec: {error} (in {entry!r})"
            ) from error
        self.add_metric_to_cache(name, unit, dimensions, metric_type)


def _check_key(metric_name: Any, metric_type: Any) -> None:
    if not isinstance(metric_name, str):
        raise merrors.MetricsCacheTypeError("`metric_name` must be a str")
    if not isinstance(metric_type, MetricTypes):
        raise merrors.MetricsCacheTypeError("`metric_type` must be a MetricTypes enum")


def _read_yaml(path: str) -> Any:
    if path is None:
        raise merrors.MetricsCacheTypeError("Error loading None file: a metrics file is needed")
    if not path:
        raise merrors.MetricsCacheTypeError("Config file not initialized")
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise merrors.MetricsCachePyYamlError(f"Error parsing file: {path}: {error}") from error
    except OSError as error:
        raise merrors.MetricsCacheIOError(f"Error reading file: {path}: {error}") from error
    except Exception as error:
        raise merrors.GeneralMetricsCacheError(f"Error loading file: {path}: {error}") from error
    logger.info("Successfully loaded %s.", path)
    return content
