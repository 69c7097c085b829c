import logging

import pytest

from ts.metrics import caching_metric, metric
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

METRICS_FILE = """
dimensions:
  - &model_name "ModelName"
  - &level "Level"
ts_metrics:
  counter:
    - name: Requests2XX
      unit: Count
      dimensions: [*level]
model_metrics:
  gauge:
    - name: HandlerTime
      unit: ms
      dimensions: [*model_name, *level]
    - name: NoDimensions
      unit: ms
      dimensions:
"""


@pytest.fixture(autouse=True)
def _fixed_host_and_time(monkeypatch):
    """Lines end with the host and the second, which a test cannot know otherwise."""
    monkeypatch.setattr(caching_metric, "HOSTNAME", "node1")
    monkeypatch.setattr(metric, "HOSTNAME", "node1")
    monkeypatch.setattr(caching_metric.time, "time", lambda: 1700000000.9)


@pytest.fixture
def lines(caplog):
    """The metric lines logged since the last call."""
    caplog.set_level(logging.INFO)

    def take():
        messages = [r.getMessage() for r in caplog.records if "[METRICS]" in r.getMessage()]
        caplog.clear()
        return messages

    return take


@pytest.fixture
def metrics_file(tmp_path):
    path = tmp_path / "metrics.yaml"
    path.write_text(METRICS_FILE)
    return path


@pytest.fixture
def cache(metrics_file):
    """The cache of a worker that serves a batch of two requests for the model mnist."""
    cache = MetricsCacheYamlImpl(str(metrics_file))
    cache.initialize_cache()
    cache.model_name = "mnist"
    cache.set_request_ids({0: "r0", 1: "r1"})
    return cache
