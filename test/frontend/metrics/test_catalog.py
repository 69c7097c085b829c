from pathlib import Path

import pytest

from ts_frontend.metrics.catalog import CatalogError, MetricKind, read_catalog

DEFAULT_FILE = Path(__file__).parents[3] / "ts" / "configs" / "metrics.yaml"

# Name, kind, unit, dimensions: the contract's table of built-in metrics.
BUILT_IN = """
Requests2XX                       counter Count        Level,Hostname
Requests4XX                       counter Count        Level,Hostname
Requests5XX                       counter Count        Level,Hostname
ts_inference_requests_total       counter Count        model_name,model_version,hostname
ts_inference_latency_microseconds counter Microseconds model_name,model_version,hostname
ts_queue_latency_microseconds     counter Microseconds model_name,model_version,hostname
QueueTime                         gauge   Milliseconds Level,Hostname
WorkerThreadTime                  gauge   Milliseconds Level,Hostname
WorkerLoadTime                    gauge   Milliseconds WorkerName,Level,Hostname
CPUUtilization                    gauge   Percent      Level,Hostname
MemoryUsed                        gauge   Megabytes    Level,Hostname
MemoryAvailable                   gauge   Megabytes    Level,Hostname
MemoryUtilization                 gauge   Percent      Level,Hostname
DiskUsage                         gauge   Gigabytes    Level,Hostname
DiskAvailable                     gauge   Gigabytes    Level,Hostname
DiskUtilization                   gauge   Percent      Level,Hostname
GPUMemoryUtilization              gauge   Percent      Level,DeviceId,Hostname
GPUUtilization                    gauge   Percent      Level,DeviceId,Hostname
GPUMemoryUsed                     gauge   Megabytes    Level,DeviceId,Hostname
"""


def rows(definitions):
    return {(d.name, d.kind.value, d.unit, ",".join(d.dimensions)) for d in definitions.values()}


def test_the_default_file_is_the_table_of_the_contract():
    catalog = read_catalog(str(DEFAULT_FILE))
    assert rows(catalog.server) == {tuple(line.split()) for line in BUILT_IN.split("\n") if line}
    assert rows(catalog.model) == {
        ("HandlerTime", "gauge", "ms", "ModelName,Level,Hostname"),
        ("PredictionTime", "gauge", "ms", "ModelName,Level,Hostname"),
    }


def test_hostname_is_added_to_metrics_of_models_only(tmp_path):
    path = tmp_path / "metrics.yaml"
    path.write_text(
        "dimensions: [&level Level]\n"
        "mode: log\n"
        "ts_metrics:\n  counter:\n    - {name: A, unit: Count, dimensions: [*level]}\n"
        "model_metrics:\n  histogram:\n    - {name: B, unit: ms, dimensions: }\n"
    )
    catalog = read_catalog(str(path))
    assert catalog.server["A"].dimensions == ("Level",)
    assert catalog.model["B"].dimensions == ("Hostname",)
    assert catalog.model["B"].kind is MetricKind.HISTOGRAM


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "a map with ts_metrics"),
        ("ts_metrics: [a]", "a map of counter"),
        ("ts_metrics: {timer: []}", "'timer' is not one of"),
        ("ts_metrics: {counter: [a]}", "'a' is not a map"),
        ("ts_metrics: {counter: [{unit: Count}]}", "has no name"),
        ("ts_metrics: {counter: [{name: A}]}", "A has no unit"),
        ("ts_metrics: {counter: [{name: A, unit: U, dimensions: [1]}]}", "not a list of names"),
        (
            "model_metrics: {counter: [{name: A, unit: U}], gauge: [{name: A, unit: U}]}",
            "A is defined twice",
        ),
        ("a: [", "metrics.yaml"),
        ("a: !!python/object:os.system x", "metrics.yaml"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path, text, reason):
    path = tmp_path / "metrics.yaml"
    path.write_text(text)
    with pytest.raises(CatalogError, match=reason):
        read_catalog(str(path))


def test_a_missing_file(tmp_path):
    with pytest.raises(CatalogError, match="No such file"):
        read_catalog(str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize(
    ("name", "dimension", "is_exportable"),
    [("a_1", "b", True), ("a b", "b", False), ("a", "b c", False), ("1a", "b", False)],
)
def test_names_that_prometheus_cannot_hold(tmp_path, name, dimension, is_exportable):
    path = tmp_path / "metrics.yaml"
    path.write_text(
        f"ts_metrics: {{gauge: [{{name: '{name}', unit: U, dimensions: ['{dimension}']}}]}}"
    )
    assert read_catalog(str(path)).server[name].is_exportable is is_exportable
