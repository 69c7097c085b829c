"""Whom a worker reports to: the pool that it belongs to, and the server's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ts_frontend.core.errors import ModelError, WorkerDied
from ts_frontend.core.job import Job
from ts_frontend.core.model import Model
from ts_frontend.workers.failure import WorkerFailure

if TYPE_CHECKING:
    from ts_frontend.workers.worker import Worker


class WorkerMeters(Protocol):
    """What a worker reports of itself; milliseconds."""

    def loaded(self, worker_name: str, load_ms: float) -> None: ...

    def batch(self, queue_ms: float, worker_thread_ms: float) -> None:
        """How long the last job of a batch waited, and what handing the batch over took."""
        ...

    def died(self, model: Model, cause: str) -> None:
        """cause: one of few short texts (`WorkerFailure.label`)."""
        ...

    def rerun(self, model: Model, reason: str, requests: int) -> None:
        """So many requests will run again; reason: "worker_death" or "batch_failure"."""
        ...

    def quarantined(self, model: Model) -> None:
        """A request was given up: too many workers died while they ran it."""
        ...

    def worker_line(self, line: str) -> bool:
        """Take a line that the worker printed; True if it was a metric and needs no log line."""
        ...


class WorkerOwner(Protocol):
    """The pool, as its workers see it."""

    def feed(self) -> None:
        """Something has changed that may let a waiting job run."""

    def worker_is_free(self, worker: Worker) -> None: ...

    def top_up(self, worker: Worker, room: int) -> None:
        """Let up to `room` of those who wait join the batch that `worker` has under way."""

    def worker_is_gone(self, worker: Worker) -> None:
        """It takes nothing more for now (died, stopping)."""

    def batch_lost(
        self, jobs: Sequence[Job], error: WorkerDied, failure: WorkerFailure | None
    ) -> None:
        """The process ended with these on board. failure: None if that was the server's wish."""

    def batch_failed(self, jobs: Sequence[Job], error: ModelError) -> None:
        """The handler failed these together."""
