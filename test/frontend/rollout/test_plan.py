"""What may be asked of a rollout, as JSON and as a query's texts."""

from __future__ import annotations

import pytest

from ts_frontend.core.errors import InvalidArgument
from ts_frontend.rollout.plan import RolloutPlan, parse_plan


def test_a_query_and_a_json_object_say_the_same() -> None:
    plan = RolloutPlan(
        url="m.mar", canary=(10, 100), step_s=1.5, max_error_rate=0.01, min_requests=5
    )
    as_json = {"url": "m.mar", "canary": [10, 100], "step_s": 1.5, "max_error_rate": 0.01}
    assert parse_plan({**as_json, "min_requests": 5}) == plan
    texts = {"url": "m.mar", "canary": "10,100", "step_s": "1.5", "max_error_rate": "0.01"}
    assert parse_plan({**texts, "min_requests": "5"}) == plan


@pytest.mark.parametrize("nothing", ["", []])
def test_without_percentages_all_comes_at_once(nothing: object) -> None:
    assert parse_plan({"version": "2.0", "canary": nothing}).canary == ()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "Either version"),
        ({"version": "2", "url": "m.mar"}, "Either version"),
        ({"version": "2", "canary": "50,20"}, "at least as large"),
        ({"version": "2", "canary": "0"}, "canary"),
        ({"version": "2", "canary": [101]}, "canary"),
        ({"version": "2", "canary": "many"}, "canary"),
        ({"version": "2", "canary": [50] * 101}, "up to 100"),
        ({"version": "2", "max_error_rate": 2}, "max_error_rate"),
        ({"version": "2", "step_s": -1}, "step_s"),
        ({"version": "2", "step": 3}, "step"),
        ({"version": "2", "old_version": "burn"}, "burn"),
    ],
)
def test_a_mistake_is_named(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        parse_plan(values)


@pytest.mark.parametrize(
    ("values", "is_unregistered"),
    [
        ({"url": "m.mar"}, True),
        ({"version": "2"}, False),
        ({"url": "m.mar", "failed_version": "keep"}, False),
        ({"version": "2", "failed_version": "unregister"}, True),
    ],
)
def test_what_the_rollout_has_registered_it_takes_away(
    values: dict[str, object], is_unregistered: bool
) -> None:
    assert parse_plan(values).is_failed_unregistered is is_unregistered
