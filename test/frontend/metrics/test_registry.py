import pytest

from ts_frontend.metrics import registry as registry_module
from ts_frontend.metrics.catalog import MetricDefinition, MetricKind
from ts_frontend.metrics.registry import LabelMismatch, MetricRegistry


def definition(name="m", kind=MetricKind.COUNTER, dimensions=("a",), **more):
    return MetricDefinition(name=name, kind=kind, unit="Count", dimensions=dimensions, **more)


@pytest.fixture
def registry():
    return MetricRegistry()


def test_a_child_is_one_object_per_label_values(registry):
    registry.define(definition())
    child = registry.counter("m").child("x")
    child.value += 2
    assert registry.counter("m").child("x") is child
    assert registry.counter("m").child("y").value == 0
    assert [series.labels for series in registry.counter("m").series()] == [("x",), ("y",)]


def test_what_nobody_defined_counts_into_the_void(registry):
    registry.counter("gone").child("any", "labels").value += 1
    registry.gauge("gone").child().value = 5
    registry.histogram("gone").child("x").observe(1)
    assert not list(registry.values())
    assert registry.counter("gone").child("any", "labels").value == 0


def test_the_number_of_labels_must_fit(registry):
    registry.define(definition())
    with pytest.raises(LabelMismatch, match=r"m has the dimensions \['a'\], not the values"):
        registry.counter("m").child("x", "y")


def test_a_name_is_defined_once(registry):
    assert registry.define(definition())
    assert not registry.define(definition(kind=MetricKind.HISTOGRAM))


def test_histogram_buckets(registry):
    registry.define(definition(kind=MetricKind.HISTOGRAM, buckets=(1, 2.5)))
    series = registry.histogram("m").child("x")
    for value in (0.5, 1, 1.5, 2.5, 9):
        series.observe(value)
    assert series.bucket_counts == [2, 2, 1]  # a bound belongs to its bucket
    assert series.sum == 14.5


def test_record(registry):
    for kind in MetricKind:
        registry.define(definition(kind.value, kind))
    for kind in MetricKind:
        registry.record(definition(kind.value, kind), ("x",), 2)
        registry.record(definition(kind.value, kind), ("x",), 3)
    assert registry.counter("counter").child("x").value == 5
    assert registry.gauge("gauge").child("x").value == 3
    assert registry.histogram("histogram").child("x").sum == 5
    with pytest.raises(ValueError, match="negative value -1"):
        registry.record(definition("counter"), ("x",), -1)


def test_series_are_bounded(registry, monkeypatch, caplog):
    """A handler with a request id among its dimensions must not fill the memory."""
    monkeypatch.setattr(registry_module, "MAX_SERIES_PER_METRIC", 2)
    registry.define(definition())
    for label in "abcde":
        registry.counter("m").child(label).value += 1
    assert [series.labels for series in registry.counter("m").series()] == [("a",), ("b",)]
    assert len(caplog.records) == 1


def test_metrics_are_bounded(registry, monkeypatch):
    monkeypatch.setattr(registry_module, "MAX_METRICS", 1)
    assert registry.define(definition("a"))
    assert not registry.define(definition("b"))


def test_forget(registry):
    registry.define(definition())
    for label in "ab":
        registry.counter("m").child(label)
    registry.counter("m").forget(lambda labels: labels == ("a",))
    assert [series.labels for series in registry.counter("m").series()] == [("b",)]
