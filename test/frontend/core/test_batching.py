"""The batching rule as a table: what waits and how long, against what is taken."""

from __future__ import annotations

import pytest
from fakes import new_job
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.core.batching import DynamicBatching, Take, WaitUntil
from ts_frontend.core.job import Command

SINCE_S = 100.0

# Waiting jobs as letters (p predict, d describe), batch size, delay, time since the first was seen.
RULES = [
    ("p", 1, 5.0, 0.0, Take(1)),
    ("ppp", 1, 5.0, 0.0, Take(1)),
    ("p", 4, 5.0, 0.0, WaitUntil(105.0)),
    ("ppp", 4, 5.0, 4.9, WaitUntil(105.0)),
    ("ppp", 4, 5.0, 5.0, Take(3)),
    ("ppp", 4, 5.0, 60.0, Take(3)),
    ("pppp", 4, 5.0, 0.0, Take(4)),
    ("ppppp", 4, 5.0, 0.0, Take(4)),
    # No delay: what is there goes at once, all of it (TorchServe: at most two).
    ("ppp", 4, 0.0, 0.0, Take(3)),
    ("ppppppppp", 8, 0.0, 0.0, Take(8)),
    # A describe is alone, and closes the batch before it.
    ("d", 4, 5.0, 0.0, Take(1)),
    ("dp", 4, 5.0, 0.0, Take(1)),
    ("dd", 4, 5.0, 0.0, Take(1)),
    ("pd", 4, 5.0, 0.0, Take(1)),
    ("ppdp", 4, 5.0, 0.0, Take(2)),
    ("pppdp", 3, 5.0, 0.0, Take(3)),
]


@pytest.mark.parametrize(("waiting", "size", "delay_s", "waited_s", "decision"), RULES)
def test_dynamic_batching(
    waiting: str, size: int, delay_s: float, waited_s: float, decision: Take | WaitUntil
) -> None:
    commands = {"p": Command.PREDICT, "d": Command.DESCRIBE}
    jobs = [new_job(command=commands[letter]) for letter in waiting]
    policy = DynamicBatching(size, delay_s)
    found = policy.decide(jobs, SINCE_S, SINCE_S + waited_s)
    assert found == decision
    assert type(found) is type(decision)  # as tuples the two would be equal


@given(
    st.text("pd", min_size=1, max_size=12),
    st.integers(1, 6),
    st.floats(0, 10),
    st.floats(0, 20),
)
def test_no_decision_breaks_the_rule(
    waiting: str, size: int, delay_s: float, waited_s: float
) -> None:
    commands = {"p": Command.PREDICT, "d": Command.DESCRIBE}
    jobs = [new_job(command=commands[letter]) for letter in waiting]
    decision = DynamicBatching(size, delay_s).decide(jobs, SINCE_S, SINCE_S + waited_s)
    if isinstance(decision, WaitUntil):
        assert SINCE_S + waited_s < decision.time_s == SINCE_S + delay_s
        assert len(waiting) < size
        assert "d" not in waiting
    else:
        assert 1 <= decision.size <= min(size, len(waiting))
        taken = waiting[: decision.size]
        assert taken == "d" or "d" not in taken
