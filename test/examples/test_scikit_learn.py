"""examples/scikit_learn: trained, packed and asked."""

from collections.abc import Callable

import pytest

pytest.importorskip("sklearn")


def test_flowers_are_told_apart_and_a_bad_line_hurts_nobody(load_example: Callable) -> None:
    iris = load_example("scikit_learn")
    answers = iris.handle(
        [
            {"body": "5.1,3.5,1.4,0.2\n"},
            {"body": bytearray(b"6.7,3.0,5.2,2.3")},
            {"body": "5.1,3.5"},
            {"body": "a,b,c,d"},
        ]
    )
    assert [answer.get("class") for answer in answers] == ["setosa", "virginica", None, None]
    assert all(answer["probability"] > 0.9 for answer in answers[:2])
    assert [iris.status(index) for index in range(4)] == [200, 200, 400, 400]
    assert answers[2] == {"error": "4 numbers are expected, not 2"}
