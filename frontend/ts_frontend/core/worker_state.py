"""The life of a worker as a table. `Worker.advance` is the only place that moves along it."""

from __future__ import annotations

import enum
from typing import Final


class WorkerState(enum.Enum):
    STARTING = "starting"  # process spawned, not yet listening
    LOADING = "loading"  # connected, the handler initialises
    READY = "ready"  # loaded; idle or running batches
    RECOVERING = "recovering"  # died, waits for its next start
    DEAD = "dead"  # will not be tried again
    STOPPING = "stopping"  # removed on purpose, may still finish what it runs
    STOPPED = "stopped"


READY: Final = WorkerState.READY  # under a name of its own for the hot path, see core.job


class WorkerEvent(enum.Enum):
    LISTENING = "listening"
    LOADED = "loaded"
    FAILED = "failed"  # exit, crash, hang, protocol error, load refused
    RETRY = "retry"
    GIVE_UP = "give up"
    STOP = "stop"
    ENDED = "ended"


_S, _E = WorkerState, WorkerEvent

TRANSITIONS: dict[tuple[WorkerState, WorkerEvent], WorkerState] = {
    (_S.STARTING, _E.LISTENING): _S.LOADING,
    (_S.LOADING, _E.LOADED): _S.READY,
    (_S.STARTING, _E.FAILED): _S.RECOVERING,
    (_S.LOADING, _E.FAILED): _S.RECOVERING,
    (_S.READY, _E.FAILED): _S.RECOVERING,
    (_S.RECOVERING, _E.RETRY): _S.STARTING,
    (_S.RECOVERING, _E.GIVE_UP): _S.DEAD,
    **{
        (state, _E.STOP): _S.STOPPING
        for state in (_S.STARTING, _S.LOADING, _S.READY, _S.RECOVERING, _S.DEAD)
    },
    (_S.STOPPING, _E.ENDED): _S.STOPPED,
}


class IllegalTransition(Exception):
    """Our own bug: an event that the table does not know in this state."""


def next_state(state: WorkerState, event: WorkerEvent) -> WorkerState:
    """Raises IllegalTransition and changes nothing if the table has no such move."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{event.value!r} in state {state.value!r}") from None
