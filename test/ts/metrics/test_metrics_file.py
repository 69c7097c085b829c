from pathlib import Path

import pytest
import yaml

from ts.metrics import metric_cache_errors as errors
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

DEFAULT_FILE = Path(__file__).parents[3] / "ts" / "configs" / "metrics.yaml"


def load(path):
    cache = MetricsCacheYamlImpl(path)
    cache.initialize_cache()
    return cache


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", errors.MetricsCacheKeyError, "model_metrics"),
        ("foo: 1", errors.MetricsCacheKeyError, "model_metrics"),
        ("[1]", errors.MetricsCacheKeyError, "model_metrics"),
        ("model_metrics:", errors.MetricsCacheValueError, "Missing `model_metrics` specification"),
        ("model_metrics: {}", errors.MetricsCacheValueError, "Missing `model_metrics`"),
        ("model_metrics: [1]", errors.MetricsCacheTypeError, "model_metrics"),
        ("model_metrics: {Gauge: []}", errors.MetricsCacheKeyError, "Invalid metric type"),
        ("model_metrics: {gauge: 5}", errors.MetricsCacheTypeError, "must be a list"),
        ("model_metrics: {gauge: [1]}", errors.MetricsCacheTypeError, "`name`"),
        (
            "model_metrics: {gauge: [{unit: u, dimensions: []}]}",
            errors.MetricsCacheKeyError,
            "name",
        ),
        (
            "model_metrics: {gauge: [{name: n, dimensions: []}]}",
            errors.MetricsCacheKeyError,
            "unit",
        ),
        ("model_metrics: {gauge: [{name: n, unit: u}]}", errors.MetricsCacheKeyError, "dimensions"),
        (
            "model_metrics: {gauge: [{name: 1, unit: u, dimensions: []}]}",
            errors.MetricsCacheTypeError,
            "`metric_name` must be a str",
        ),
        ("a: [", errors.MetricsCachePyYamlError, "Error parsing file: "),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(tmp_path, text, error, message):
    path = tmp_path / "metrics.yaml"
    path.write_text(text)
    with pytest.raises(error) as caught:
        load(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (None, errors.MetricsCacheTypeError, "Error loading None file: "),
        ("", errors.MetricsCacheTypeError, "Config file not initialized"),
        ("/no/such/file", errors.MetricsCacheIOError, "Error reading file: "),
    ],
)
def test_a_path_that_cannot_be_read_is_refused(path, error, message):
    with pytest.raises(error) as caught:
        load(path)
    assert message in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "metrics.yaml"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(errors.GeneralMetricsCacheError):
        load(str(path))


def test_error_classes_derive_from_the_builtin_ones():
    assert issubclass(errors.MetricsCacheTypeError, TypeError)
    assert issubclass(errors.MetricsCacheValueError, ValueError)
    assert issubclass(errors.MetricsCacheKeyError, KeyError)
    assert issubclass(errors.MetricsCacheIOError, IOError)
    assert issubclass(errors.MetricsCachePyYamlError, yaml.YAMLError)
    assert issubclass(errors.GeneralMetricsCacheError, Exception)


def test_the_default_file_defines_what_the_server_emits():
    assert load(str(DEFAULT_FILE)).cache_keys() == ["gauge:HandlerTime", "gauge:PredictionTime"]
    frontend = yaml.safe_load(DEFAULT_FILE.read_text())["ts_metrics"]
    dimensions = {
        entry["name"]: entry["dimensions"] for kind in frontend.values() for entry in kind
    }
    level = ["Level", "Hostname"]
    model = ["model_name", "model_version", "hostname"]
    gpu = ["Level", "DeviceId", "Hostname"]
    assert list(frontend) == ["counter", "gauge"]
    assert dimensions == {
        **dict.fromkeys(["Requests2XX", "Requests4XX", "Requests5XX"], level),
        "ts_inference_requests_total": model,
        "ts_inference_latency_microseconds": model,
        "ts_queue_latency_microseconds": model,
        "QueueTime": level,
        "WorkerThreadTime": level,
        "WorkerLoadTime": ["WorkerName", *level],
        **dict.fromkeys(["CPUUtilization", "MemoryUsed", "MemoryAvailable"], level),
        **dict.fromkeys(["MemoryUtilization", "DiskUsage"], level),
        **dict.fromkeys(["DiskUtilization", "DiskAvailable"], level),
        **dict.fromkeys(["GPUMemoryUtilization", "GPUMemoryUsed", "GPUUtilization"], gpu),
    }
