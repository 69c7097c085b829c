import json

import pytest

from ts.metrics.dimension import Dimension
from ts.metrics.metric import Metric
from ts.metrics.metric_encoder import MetricEncoder
from ts.metrics.metrics_store import MetricsStore
from ts.metrics.unit import Units

END = "|#hostname:node1,1700000000"
MODEL = "|#ModelName:mnist,Level:Model"


@pytest.fixture
def store():
    return MetricsStore({0: "r0", 1: "r1"}, "mnist")


def test_a_metric_is_silent_until_it_is_updated(lines):
    metric = Metric("n", 1, "ms", [Dimension("a", "b")])
    assert str(metric) == f"n.Milliseconds:1|#a:b{END}"
    assert lines() == []
    metric.update(5)
    metric.reset()
    assert lines() == [
        f"[METRICS]n.Milliseconds:5|#a:b|#type:COUNTER{END}",
        f"[METRICS]n.Milliseconds:0|#a:b|#type:COUNTER{END}",
    ]
    assert metric.value == 1


def test_the_dict_and_json_forms():
    metric = Metric("n", 1, "weird", [Dimension("a", "b")], "rid", "counter")
    assert str(metric) == f"n.weird:1|#a:b{END},rid"
    expected = {
        "MetricName": "n",
        "Value": 1,
        "Unit": "weird",
        "Dimensions": [{"Name": "a", "Value": "b"}],
        "Timestamp": 1700000000,
        "HostName": "node1",
        "RequestId": "rid",
    }
    assert json.dumps(metric, cls=MetricEncoder) == json.dumps(expected)
    assert list(metric.to_dict()) == list(expected)
    with pytest.raises(TypeError):
        json.dumps(object(), cls=MetricEncoder)


def test_the_store_keeps_the_first_value_and_emits_later_ones(store, lines):
    store.add_counter("c", 1)
    store.add_counter("c", 2, 0)
    assert lines() == []
    store.add_counter("c", 3)
    assert lines() == [f"[METRICS]c.Count:3{MODEL}|#type:COUNTER{END},r0,r1"]
    assert list(store.cache) == [
        "c-count-r0,r1-ModelName:mnist-Level:Model",
        "c-count-r0-ModelName:mnist-Level:Model",
    ]
    assert store.store == list(store.cache.values())


@pytest.mark.parametrize(
    ("method", "arguments", "key"),
    [
        ("add_time", ("t", 1), "t-ms-r0,r1-ModelName:mnist-Level:Model"),
        ("add_time", ("t", 1, 0, "s"), "t-s-r0-ModelName:mnist-Level:Model"),
        ("add_size", ("s", 1), "s-MB-r0,r1-ModelName:mnist-Level:Model"),
        ("add_percent", ("p", 1), "p-percent-r0,r1-ModelName:mnist-Level:Model"),
        ("add_metric", ("m", 1, "u"), "m-u-r0,r1-ModelName:mnist-Level:Model"),
        ("add_error", ("e", "text"), "e--None-Level:Error"),
        # Dimensions count for counters only.
        (
            "add_percent",
            ("p", 1, 0, [Dimension("x", "y")]),
            "p-percent-r0-ModelName:mnist-Level:Model",
        ),
        (
            "add_counter",
            ("c", 1, 0, [Dimension("x", "y")]),
            "c-count-r0-x:y-ModelName:mnist-Level:Model",
        ),
    ],
)
def test_keys_of_the_store(store, method, arguments, key):
    getattr(store, method)(*arguments)
    assert list(store.cache) == [key]


def test_an_error_may_be_a_text(store, lines):
    store.add_error("e", "first")
    store.add_error("e", "second")
    assert lines() == [f"[METRICS]e.unit:second|#Level:Error|#type:COUNTER{END}"]


def test_units_are_checked(store):
    with pytest.raises(ValueError, match="ms"):
        store.add_time("t", 1, None, "min")
    with pytest.raises(ValueError, match="MB"):
        store.add_size("s", 1, None, "TB")


def test_the_unit_table():
    assert Units().units == {
        "ms": "Milliseconds",
        "s": "Seconds",
        "percent": "Percent",
        "count": "Count",
        "MB": "Megabytes",
        "GB": "Gigabytes",
        "kB": "Kilobytes",
        "B": "Bytes",
        "": "unit",
        None: "unit",
    }


def test_a_dimension():
    dimension = Dimension("Level", "Host")
    assert str(dimension) == "Level:Host"
    assert dimension.to_dict() == {"Name": "Level", "Value": "Host"}
