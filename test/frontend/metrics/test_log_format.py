import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.metrics.log_format import java_double, model_line, server_line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1.0"),
        (0, "0.0"),
        (-0.0, "-0.0"),
        (12.34, "12.34"),
        (9999999, "9999999.0"),
        (12000000, "1.2E7"),
        (1e7, "1.0E7"),
        (123456789.25, "1.2345678925E8"),
        (1e22, "1.0E22"),
        (0.001, "0.001"),
        (0.00012, "1.2E-4"),
        (-0.00012, "-1.2E-4"),
        (1e-5, "1.0E-5"),
        (5e-324, "5.0E-324"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (math.nan, "NaN"),
    ],
)
def test_java_double(value, text):
    assert java_double(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_java_double_reads_back(value):
    assert float(java_double(value)) == value


def test_server_line_is_the_example_of_the_contract():
    line = server_line(
        "Requests4XX",
        "Count",
        1,
        ("Level", "Hostname"),
        ("Host", "ip-172-31-11-32"),
        1717105563,
    )
    assert (
        line == "Requests4XX.Count:1.0|#Level:Host|#hostname:ip-172-31-11-32,timestamp:1717105563"
    )


@pytest.mark.parametrize(("ids", "text"), [(None, "null"), ("a,b", "a,b")])
def test_model_line(ids, text):
    dimensions = ("ModelName", "Level", "Hostname")
    line = model_line("HandlerTime", "ms", 12.5, dimensions, ("m", "Model", "h"), ids, 17)
    assert line == (
        f"HandlerTime.ms:12.5|#ModelName:m,Level:Model|#hostname:h,requestID:{text},timestamp:17"
    )


def test_the_shorter_of_names_and_values_is_shown():
    assert "|#A:1|#hostname:h," in server_line("n", "u", 1, ("A", "Hostname"), ("1", "2", "h"), 17)
    assert "|#A:1|#hostname:h," in server_line("n", "u", 1, ("A", "B", "C"), ("1", "h"), 17)
