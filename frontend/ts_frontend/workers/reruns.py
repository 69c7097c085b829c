"""`Reruns`: requests that run again because what they ran with went wrong, apart from the others.

Two things bring requests here.

* Their worker died. Each of them may have been the cause, so each goes on alone, before all that
  waits; what was on board at one death too many is given up (quarantined) and never run again.
* Their handler failed them as a batch. The batch is cut in halves that run again, down to the
  single requests that fail by themselves; the others get their answers.

Both mean that a handler may see a request more than once, which `idempotent: false` rules out. A
request of whose answer the client has already seen a part is never run again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from ts_frontend.core.errors import ModelError, RequestQuarantined, ServingError, WorkerDied
from ts_frontend.core.job import Job, JobState
from ts_frontend.core.model import Model
from ts_frontend.workers.failure import WorkerFailure
from ts_frontend.workers.owner import WorkerMeters
from ts_frontend.workers.worker import is_wanted

logger = logging.getLogger(__name__)


class Reruns:
    """Groups of jobs, each to be run as a batch of its own. Like a queue it holds its jobs.

    groups: those that wait, in their order, each with the error that brought it here, for the case
            that nobody is left to run it. To be looked at only: on every request, so it is no call.
    """

    def __init__(self, model: Model, meters: WorkerMeters) -> None:
        self._model = model
        self._meters = meters
        self.groups: deque[tuple[list[Job], ServingError]] = deque()

    def take(self, now_s: float) -> list[Job] | None:
        """The next group, for a free worker, or None."""
        if not self.groups:
            return None
        group, _ = self.groups.popleft()
        for job in group:
            job.state = JobState.RUNNING
            job.holder = None  # until its worker takes it
            job.taken_s = now_s
        return group

    def after_death(
        self, jobs: Sequence[Job], error: WorkerDied, failure: WorkerFailure | None
    ) -> None:
        """A worker ended with `jobs` on board; whoever is not run again is answered with `error`.

        failure: None if the server itself ended the worker in the middle of its work.
        """
        care = self._model.config.care
        limit = care.death_retries if care.is_idempotent else 0
        may_retry = limit > 0 and (failure is None or failure.may_be_retried(len(jobs)))
        suspects = []
        for job in jobs:
            if not is_wanted(job):
                continue
            if failure is not None:
                job.deaths += 1
            if job.has_output or not may_retry:
                job.fail(error)
            elif job.deaths > limit and failure is not None:
                self._quarantine(job, failure)
            else:
                suspects.append(job)
        for job in reversed(suspects):
            self._wait_first([job], error)
        if suspects:
            self._meters.rerun(self._model, "worker_death", len(suspects))
            logger.warning(
                "Model %s: a worker ended with requests on board; they run again, one by one: %s",
                self._model.id,
                _names(suspects),
            )

    def after_failure(self, jobs: Sequence[Job], error: ModelError) -> None:
        """The handler failed `jobs` as one batch; who is not run again is answered with `error`."""
        care = self._model.config.care
        is_isolating = care.is_isolating and care.is_idempotent and len(jobs) > 1
        again = []
        for job in jobs:
            if is_wanted(job) and is_isolating and not job.has_output:
                again.append(job)
            else:
                job.fail(error)
        if not again:
            return
        middle = len(again) // 2
        for half in (again[middle:], again[:middle]):
            self._wait_first(half, error)
        self._meters.rerun(self._model, "batch_failure", len(again))

    def fail_all(self) -> None:
        """Nobody is left to run them: each hears what went wrong with it."""
        while self.groups:
            group, error = self.groups.popleft()
            for job in group:
                job.fail(error)

    def abandoned(self, job: Job) -> None:
        """Its client has left, or its deadline has passed, while it waited here."""
        for entry in self.groups:
            group, _ = entry
            if job in group:
                group.remove(job)
                if not group:
                    self.groups.remove(entry)
                return

    def _wait_first(self, group: list[Job], error: ServingError) -> None:
        # Its client may have left when it heard of another job's failure.
        group = [job for job in group if is_wanted(job)]
        if not group:
            return
        for job in group:
            job.state = JobState.WAITING
            job.holder = self
        self.groups.appendleft((group, error))

    def _quarantine(self, job: Job, failure: WorkerFailure) -> None:
        self._meters.quarantined(self._model)
        logger.error(
            "Request %s of model %s is given up: %d workers died with it on board. The last: %s",
            job.request.id.decode("utf-8", "replace"),
            self._model.id,
            job.deaths,
            failure,
        )
        job.fail(RequestQuarantined.after(job.deaths, failure.ending or failure.reason))


def _names(jobs: Sequence[Job]) -> str:
    return ", ".join(job.request.id.decode("utf-8", "replace") for job in jobs)
