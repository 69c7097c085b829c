"""The table of a worker's life: every pair of state and event, allowed or not."""

from __future__ import annotations

import itertools

import pytest

from ts_frontend.core.worker_state import (
    TRANSITIONS,
    IllegalTransition,
    WorkerEvent,
    WorkerState,
    next_state,
)

S, E = WorkerState, WorkerEvent

LIVES = [
    [E.LISTENING, E.LOADED, E.STOP, E.ENDED],
    [E.FAILED, E.RETRY, E.LISTENING, E.FAILED, E.RETRY, E.LISTENING, E.LOADED, E.STOP, E.ENDED],
    [E.LISTENING, E.LOADED, E.FAILED, E.GIVE_UP, E.STOP, E.ENDED],
    [E.STOP, E.ENDED],
    [E.LISTENING, E.STOP, E.ENDED],
    [E.FAILED, E.STOP, E.ENDED],
]


@pytest.mark.parametrize("events", LIVES)
def test_a_life_ends_stopped(events: list[WorkerEvent]) -> None:
    state = S.STARTING
    for event in events:
        state = next_state(state, event)
    assert state is S.STOPPED


@pytest.mark.parametrize(("state", "event"), list(itertools.product(WorkerState, WorkerEvent)))
def test_what_the_table_does_not_know_is_refused(state: WorkerState, event: WorkerEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert isinstance(next_state(state, event), WorkerState)
    else:
        with pytest.raises(IllegalTransition, match=f"'{event.value}' in state '{state.value}'"):
            next_state(state, event)


def test_a_stop_is_always_possible_until_it_was_asked_for() -> None:
    can_stop = {state for state, event in TRANSITIONS if event is E.STOP}
    assert can_stop == set(WorkerState) - {S.STOPPING, S.STOPPED}


def test_a_stopped_worker_does_not_come_back() -> None:
    assert not [event for state, event in TRANSITIONS if state is S.STOPPED]
    assert [event for state, event in TRANSITIONS if state is S.STOPPING] == [E.ENDED]
