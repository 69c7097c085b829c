"""The names and signatures that handlers and collectors import."""

import importlib
import inspect
import subprocess
import sys

import pytest

SURFACE = {
    "metric_cache_yaml_impl.MetricsCacheYamlImpl": "config_file_path",
    "metric_cache_yaml_impl.MetricsCacheYamlImpl.add_metric_to_cache": (
        "self metric_name unit dimension_names metric_type"
    ),
    "metric_cache_yaml_impl.MetricsCacheYamlImpl.get_metric": "self metric_name metric_type",
    "metric_cache_yaml_impl.MetricsCacheYamlImpl.initialize_cache": "self",
    "metric_cache_yaml_impl.MetricsCacheYamlImpl.cache_keys": "self",
    "metric_cache_abstract.MetricCacheAbstract": "config_file_path",
    "metric_cache_abstract.MetricCacheAbstract.add_counter": "self name value idx dimensions",
    "metric_cache_abstract.MetricCacheAbstract.add_time": (
        "self name value idx unit dimensions metric_type"
    ),
    "metric_cache_abstract.MetricCacheAbstract.add_size": (
        "self name value idx unit dimensions metric_type"
    ),
    "metric_cache_abstract.MetricCacheAbstract.add_percent": (
        "self name value idx dimensions metric_type"
    ),
    "metric_cache_abstract.MetricCacheAbstract.add_metric": (
        "self name value unit idx dimensions metric_type"
    ),
    "metric_cache_abstract.MetricCacheAbstract.add_error": "self name value dimensions",
    "metric_cache_abstract.MetricCacheAbstract.set_request_ids": "self request_ids",
    "caching_metric.CachingMetric": "metric_name unit dimension_names metric_type",
    "caching_metric.CachingMetric.add_or_update": "self value dimension_values request_id",
    "caching_metric.CachingMetric.update": "self value request_id dimensions",
    "caching_metric.CachingMetric.emit_metrics": "self request_id value dimension_string",
    "metric_abstract.MetricAbstract": "metric_name unit dimension_names metric_type",
    "dimension.Dimension": "name value",
    "unit.Units": "",
    "metric.Metric": "name value unit dimensions request_id metric_method",
    "metrics_store.MetricsStore": "request_ids model_name",
    "system_metrics.collect_all": "mod num_of_gpu",
    "system_metrics.collect_gpu_metrics": "num_of_gpu",
    "system_metrics.gpu_utilization": "num_of_gpu",
    "system_metrics.cpu_utilization": "",
    "system_metrics.memory_used": "",
    "system_metrics.memory_available": "",
    "system_metrics.memory_utilization": "",
    "system_metrics.disk_used": "",
    "system_metrics.disk_available": "",
    "system_metrics.disk_utilization": "",
    "process_memory_metric.check_process_mem_usage": "stdin",
    "process_memory_metric.get_cpu_usage": "pid",
}


@pytest.mark.parametrize(("name", "parameters"), SURFACE.items())
def test_name_and_parameters(name, parameters):
    module_name, _, attribute = name.partition(".")
    found = importlib.import_module(f"ts.metrics.{module_name}")
    for part in attribute.split("."):
        found = getattr(found, part)
    assert list(inspect.signature(found).parameters) == parameters.split()


def test_metric_types():
    from ts.metrics.metric_type_enum import MetricTypes

    assert {kind.name: kind.value for kind in MetricTypes} == {
        "COUNTER": "counter",
        "GAUGE": "gauge",
        "HISTOGRAM": "histogram",
    }


def test_importing_the_package_is_cheap():
    code = (
        "import sys, ts.metrics, ts.metrics.metric_cache_yaml_impl\n"
        "assert not {'torch', 'psutil', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
