"""What can be wrong with a metrics file or with a call that emits a metric."""

from __future__ import annotations

import yaml


class MetricsCacheIOError(OSError):
    """The metrics file cannot be read."""


class MetricsCachePyYamlError(yaml.YAMLError):
    """The metrics file is not YAML."""


class MetricsCacheTypeError(TypeError):
    """An argument has the wrong type."""


class MetricsCacheValueError(ValueError):
    """An argument has a value that is not allowed."""


class MetricsCacheKeyError(KeyError):
    """A metric, or a key of the metrics file, is missing or unknown."""


class GeneralMetricsCacheError(Exception):
    """Anything else that keeps the metrics file from being used."""
