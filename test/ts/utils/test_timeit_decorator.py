import logging

import pytest

from ts.utils.timeit_decorator import timeit


@timeit
def halve(value):
    """Half of it."""
    return value / 2


def test_the_time_of_each_call_is_logged(caplog):
    caplog.set_level(logging.INFO)
    assert halve(4) == 2
    with pytest.raises(TypeError):
        halve("4")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all(line.startswith("halve took ") and line.endswith(" ms") for line in lines)
    assert halve.__doc__ == "Half of it."
