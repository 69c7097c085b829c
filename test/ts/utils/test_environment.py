from __future__ import annotations

import pytest

from ts.utils.environment import env_number


@pytest.mark.parametrize(
    ("text", "number"), [("", 7), (" ", 7), ("0", 0), ("2.5", 2.5), ("1e3", 1e3)]
)
def test_numbers(monkeypatch, text, number):
    monkeypatch.setenv("TS_X", text)
    assert env_number("TS_X", 7) == number


def test_unset(monkeypatch):
    monkeypatch.delenv("TS_X", raising=False)
    assert env_number("TS_X", 7) == 7


@pytest.mark.parametrize("text", ["ten", "-1", "nan", "inf", "1,5", "5ms"])
def test_what_is_none_is_named(monkeypatch, text):
    monkeypatch.setenv("TS_X", text)
    with pytest.raises(ValueError, match=f"TS_X must be a number of at least 0 .*not '{text}'"):
        env_number("TS_X", 7)
