"""`SelfTest`: requests that an archive brings, to be answered by a worker before it serves.

They warm the worker up, so that no client waits for what is built at the first request, and they
show that the version works here, which a load alone does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ts_frontend.core.inference import InferenceRequest


@dataclass(frozen=True, slots=True)
class TestRequest:
    """One request, and what its answer has to be.

    name:   for messages.
    status: of the answer; 0: any below 400.
    answer: the whole body; None: any.
    repeat: how often it is sent.
    """

    __test__ = False  # pytest

    name: str
    request: InferenceRequest
    status: int = 0
    answer: bytes | None = None
    repeat: int = 1


@dataclass(frozen=True, slots=True)
class SelfTest:
    """mistake: why there are no requests, though the archive wants some; "" if there are."""

    requests: Sequence[TestRequest] = ()
    mistake: str = ""
