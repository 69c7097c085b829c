"""What importing the metrics gives and costs."""

import subprocess
import sys


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
