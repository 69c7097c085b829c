import time

import pytest

from ts_frontend.metrics.worker_lines import WorkerMetric, metric_text, parse_metric_line

LINE = (
    "PredictionTime.Milliseconds:12.34|#ModelName:mnist,Level:Model|#type:GAUGE"
    "|#hostname:node1,1700000000,5a0c"
)
DIMENSIONS = (("ModelName", "mnist"), ("Level", "Model"))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("[METRICS]x", "x"),
        ("INFO > [METRICS]x", "x"),
        ("[METRICS]", ""),
        ("x [METRICS]y", None),
        ("INFO >[METRICS]x", None),
        ("METRICS x", None),
        ("", None),
    ],
)
def test_which_lines_are_metrics(line, text):
    assert metric_text(line) == text


def test_the_example_of_the_contract():
    assert parse_metric_line(LINE) == WorkerMetric(
        "PredictionTime", "Milliseconds", 12.34, DIMENSIONS, "GAUGE", "node1", "5a0c"
    )


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        (LINE + ",7b,8c", {"request_ids": "5a0c,7b,8c"}),
        (LINE.replace(",5a0c", ""), {"request_ids": None}),
        (LINE.replace(",5a0c", ","), {"request_ids": ""}),
        (LINE.replace("|#type:GAUGE", ""), {"kind": ""}),
        (LINE.replace("GAUGE", "gauge"), {"kind": "gauge"}),
        (LINE.replace("ModelName:mnist,Level:Model", ""), {"dimensions": ()}),
        (LINE.replace("mnist,", "mnist,nothing,a:b:c,"), {}),
        (LINE.replace("12.34", "1e-05"), {"value": 1e-05}),
        (LINE.replace("12.34", "-3"), {"value": -3}),
        ("  " + LINE, {}),
        (LINE + "\r\n", {}),
        (LINE.replace("PredictionTime", "Prediction Time_2"), {"name": "Prediction Time_2"}),
    ],
)
def test_variations(line, changes):
    expected = parse_metric_line(LINE)._replace(**changes)
    assert parse_metric_line(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        LINE.replace("12.34", "1e+16"),
        LINE.replace("12.34", "inf"),
        LINE.replace("12.34", "nan"),
        LINE.replace("12.34", "None"),
        LINE.replace("12.34", "1,5"),
        LINE.replace("12.34", "1e999"),
        LINE.replace("PredictionTime", "Prediction-Time"),
        LINE.replace("PredictionTime", "Prédiction"),
        LINE.replace(".Milliseconds", ""),
        LINE.replace("|#hostname:node1", ""),
        LINE.replace(",1700000000,5a0c", ""),
    ],
)
def test_what_does_not_fit(line):
    assert parse_metric_line(line) is None


@pytest.mark.parametrize(
    "line",
    [
        " " * 100_000,
        "a " * 50_000,
        "a.b:1" + "," * 100_000,
        "a.b:1|#" + "a:b," * 50_000,
        "a.b:1|#|#type:" + "x" * 100_000,
        "a.b:1|#|#hostname:" + "x" * 100_000,
    ],
)
def test_hostile_lines_take_linear_time(line):
    began = time.perf_counter()
    assert parse_metric_line(line) is None
    # Quadratic time would be minutes.
    assert time.perf_counter() - began < 1
