import logging

import pytest

from ts.metrics import metric_cache_errors as errors
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

MODEL = "|#ModelName:mnist,Level:Model"
END = "|#hostname:node1,1700000000"
BATCH = END + ",r0,r1"


@pytest.mark.parametrize(
    ("method", "arguments", "line"),
    [
        ("add_counter", ("A", 1), f"A.Count:1{MODEL}|#type:COUNTER{BATCH}"),
        ("add_counter", ("A", 1.5, 1), f"A.Count:1.5{MODEL}|#type:COUNTER{END},r1"),
        ("add_counter", ("A", 1, 7), f"A.Count:1{MODEL}|#type:COUNTER{BATCH}"),
        ("add_time", ("T", 2.25), f"T.Milliseconds:2.25{MODEL}|#type:GAUGE{BATCH}"),
        ("add_time", ("T", 2, None, "s"), f"T.Seconds:2{MODEL}|#type:GAUGE{BATCH}"),
        ("add_time", ("HandlerTime", 1), f"HandlerTime.Milliseconds:1{MODEL}|#type:GAUGE{BATCH}"),
        ("add_size", ("S", 3), f"S.Megabytes:3{MODEL}|#type:GAUGE{BATCH}"),
        ("add_size", ("S", 3, 0, "kB"), f"S.Kilobytes:3{MODEL}|#type:GAUGE{END},r0"),
        ("add_percent", ("P", 50), f"P.Percent:50{MODEL}|#type:GAUGE{BATCH}"),
        ("add_metric", ("M", 4, "foo"), f"M.foo:4{MODEL}|#type:COUNTER{BATCH}"),
        ("add_metric", ("M", 4, ""), f"M.unit:4{MODEL}|#type:COUNTER{BATCH}"),
        ("add_error", ("E", 1), f"E.unit:1|#Level:Error|#type:COUNTER{END}"),
    ],
)
def test_each_call_writes_one_line(cache, lines, method, arguments, line):
    assert getattr(cache, method)(*arguments) is None
    assert lines() == ["[METRICS]" + line]


def test_type_can_be_chosen(cache, lines):
    cache.add_time("T", 1, metric_type=MetricTypes.HISTOGRAM)
    assert lines() == [f"[METRICS]T.Milliseconds:1{MODEL}|#type:HISTOGRAM{BATCH}"]


def test_default_dimensions_follow_the_given_ones_without_touching_the_callers_list(cache, lines):
    dimensions = [Dimension("Side", "left")]
    cache.add_percent("P", 1, dimensions=dimensions)
    cache.add_percent("P", 2, dimensions=dimensions)
    start = "[METRICS]P.Percent:{}|#Side:left,ModelName:mnist,Level:Model|#type:GAUGE" + BATCH
    assert lines() == [start.format(1), start.format(2)]
    assert [str(dimension) for dimension in dimensions] == ["Side:left"]


def test_a_given_dimension_replaces_the_default_of_its_name(cache, lines):
    cache.add_percent("P", 1, dimensions=[Dimension("ModelName", "other")])
    cache.add_error("E", 1, [Dimension("Level", "Fatal")])
    assert [line.split("|#")[1] for line in lines()] == [
        "ModelName:other,Level:Model",
        "Level:Fatal",
    ]


def test_while_loading_the_request_id_is_one_text(cache, lines):
    cache.set_request_ids("load-id")
    cache.add_counter("A", 1, 0)
    assert lines() == [f"[METRICS]A.Count:1{MODEL}|#type:COUNTER{END},load-id"]


def test_outside_of_requests_the_line_ends_with_the_time(cache, lines):
    cache.set_request_ids(None)
    cache.add_counter("A", 1)
    assert lines() == [f"[METRICS]A.Count:1{MODEL}|#type:COUNTER{END}"]


def test_a_defined_metric_keeps_its_unit_and_dimension_names(cache, lines):
    cache.add_metric_to_cache("Custom", "MB", ["X", "Y"], MetricTypes.GAUGE)
    cache.add_time("Custom", 5)
    assert lines() == [f"[METRICS]Custom.Megabytes:5|#X:mnist,Y:Model|#type:GAUGE{BATCH}"]


@pytest.mark.parametrize("value", [-1, -0.5])
def test_a_negative_counter_is_reported_and_not_emitted(cache, lines, value):
    cache.add_counter("A", value)
    assert lines() == [
        "[METRICS]Failed to update metric with name:A and dimensions: ModelName:mnist,Level:Model "
        f"with value: {value}: Counter metric update value cannot be negative"
    ]


def test_dimensions_that_do_not_fit_the_definition_are_reported(cache, lines):
    cache.add_time("NoDimensions", 1)
    assert lines() == [
        "[METRICS]Failed to update metric with name:NoDimensions and dimensions:  with value: 1: "
        "Dimension values: ['mnist', 'Model'] should correspond to Dimension names: []"
    ]


@pytest.mark.parametrize("method", ["add_counter", "add_error"])
def test_a_counter_wants_a_number(cache, method):
    with pytest.raises(TypeError):
        getattr(cache, method)("A", "text")


def test_units_of_time_and_size_are_checked(cache):
    with pytest.raises(errors.MetricsCacheValueError, match=r"\['ms', 's'\]"):
        cache.add_time("T", 1, unit="min")
    with pytest.raises(ValueError, match="MB"):
        cache.add_size("S", 1, unit="TB")


def test_metrics_can_be_defined_and_found(cache, lines, caplog):
    metric = cache.add_metric_to_cache("Q", "count", ["a"])
    assert cache.get_metric("Q") is metric
    assert cache.get_metric("Q", MetricTypes.COUNTER) is metric
    assert (metric.metric_name, metric.unit, metric.dimension_names) == ("Q", "Count", ["a"])
    assert lines() == []
    assert not caplog.records

    again = cache.add_metric_to_cache("Q", "count")
    assert "Overriding existing key" in caplog.text
    assert cache.get_metric("Q") is again
    assert again.dimension_names == []
    assert cache.cache_keys() == ["gauge:HandlerTime", "gauge:NoDimensions", "counter:Q"]


def test_an_unknown_metric_is_a_key_error(cache):
    with pytest.raises(errors.MetricsCacheKeyError, match="nope"):
        cache.get_metric("nope")
    with pytest.raises(errors.MetricsCacheKeyError):
        cache.get_metric("HandlerTime", MetricTypes.COUNTER)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, "count"), "`metric_name` must be a str"),
        (("a", 1), "`unit` must be a str"),
        (("a", "count", "names"), "`dimension_names` should be a list of dimension name strings"),
        (("a", "count", [], "counter"), "`metric_type` must be a MetricTypes enum"),
    ],
)
def test_argument_types_are_checked(cache, arguments, text):
    with pytest.raises(errors.MetricsCacheTypeError) as caught:
        cache.add_metric_to_cache(*arguments)
    assert str(caught.value) == text


def test_argument_types_are_checked_when_emitting(cache):
    for call in (
        lambda: cache.add_metric(5, 1, "u"),
        lambda: cache.add_metric("a", 1, 5),
        lambda: cache.add_metric("a", 1, "u", metric_type="counter"),
        lambda: cache.get_metric("a", "gauge"),
    ):
        with pytest.raises(errors.MetricsCacheTypeError):
            call()


def test_a_metric_can_be_updated_directly(cache, lines, caplog):
    metric = cache.add_metric_to_cache("W", "count", ["a", "b"])
    metric.add_or_update(1, ["x", "y"])
    metric.add_or_update(1, ["x", "y"], "rid")
    metric.add_or_update(1, ["x"])
    assert lines() == [
        f"[METRICS]W.Count:1|#a:x,b:y|#type:COUNTER{END}",
        f"[METRICS]W.Count:1|#a:x,b:y|#type:COUNTER{END},rid",
        "[METRICS]Failed to update metric with name:W and dimensions:  with value: 1: "
        "Dimension values: ['x'] should correspond to Dimension names: ['a', 'b']",
    ]
    metric.update(3, "rid", [Dimension("q", "w")])
    assert "Overriding existing dimensions" in caplog.text
    assert lines() == [f"[METRICS]W.Count:3|#q:w|#type:COUNTER{END},rid"]
    metric.update(4)
    metric.emit_metrics("rid", 5, "k:v")
    assert lines() == [
        f"[METRICS]W.Count:4|#|#type:COUNTER{END}",
        f"[METRICS]W.Count:5|#k:v|#type:COUNTER{END},rid",
    ]


def test_failures_are_errors_and_values_are_information(cache, caplog):
    caplog.set_level(logging.INFO)
    cache.add_counter("A", 1)
    cache.add_counter("A", -1)
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]


def test_the_cache_starts_as_documented(cache, metrics_file):
    assert cache.store == []
    assert cache.config_file_path == str(metrics_file)
    assert set(cache.cache) == {MetricTypes.GAUGE}
