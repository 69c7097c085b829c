"""How a frontend and a worker of ours find out that both know more than TorchServe's messages.

A frontend that may cancel a request in the worker, or ask it for a sign of life, sets
`CONTROLS_VARIABLE` for the process that it starts. A worker that understands these commands adds a
mark to the message of its load reply. Only then does the frontend send them: TorchServe's worker
would end at a command that it does not know, and TorchServe's frontend never sees the mark.
"""

from __future__ import annotations

CONTROLS_VARIABLE = "TS_WORKER_CONTROLS"
_MARK = "\x1econtrols"


def mark_controls(message: str) -> str:
    """The text of a load reply, with the word that the controls are understood."""
    return message + _MARK


def has_controls(message: str) -> bool:
    """Whether the worker that said `message` in its load reply understands the controls."""
    return message.endswith(_MARK)
