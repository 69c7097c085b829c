"""`Rollouts`: those under way, at most one for a name, and the last that have ended."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from ts_frontend.control_plane import ControlPlane, Registration
from ts_frontend.core.errors import InvalidArgument, RolloutConflict, RolloutNotFound
from ts_frontend.core.model import Model
from ts_frontend.rollout.plan import RolloutPlan
from ts_frontend.rollout.rollout import Rollout, RolloutMeters, RolloutReport, RolloutState

logger = logging.getLogger(__name__)

KEPT = 50
"""How many rollouts that have ended are remembered, of all names together."""


class Rollouts:
    def __init__(self, control: ControlPlane, meters: RolloutMeters) -> None:
        self._control = control
        self._meters = meters
        self._active: dict[str, Rollout] = {}
        self._starting: set[str] = set()
        self._ended: deque[RolloutReport] = deque(maxlen=KEPT)
        control.on_unregister = self._unregistering
        control.on_default_set = self._default_was_set

    async def start(self, name: str, plan: RolloutPlan) -> RolloutReport:
        """Open the archive, if there is one, and let the rollout take its course.

        Raises ModelNotFound, ModelVersionNotFound, InvalidArgument, RolloutConflict, and for an
        archive what `ControlPlane.register` raises.
        """
        current = self._control.registry.resolve(name)
        if name in self._active or name in self._starting:
            raise RolloutConflict(f"A rollout of model {name} is under way; abort it first.")
        if plan.version == current.id.version:
            raise InvalidArgument(
                f"Version {plan.version} is the default version of model {name} already."
            )
        self._starting.add(name)
        try:
            candidate = await self._candidate(name, plan)
            if self._control.registry.resolve(name) is not current:
                await self._control.unregister(name, candidate.id.version)
                raise RolloutConflict(f"The default version of model {name} has changed meanwhile.")
        finally:
            self._starting.discard(name)
        rollout = Rollout(
            self._control, current, candidate, plan, self._meters, self._rollout_ended
        )
        self._active[name] = rollout
        rollout.task = asyncio.create_task(rollout.run(), name=f"rollout {candidate.id}")
        rollout.task.add_done_callback(_report_fault)
        return rollout.report()

    async def _candidate(self, name: str, plan: RolloutPlan) -> Model:
        if plan.version:
            candidate = self._control.registry.resolve(name, plan.version)
        else:
            candidate = await self._control.add_on_trial(Registration(plan.url, model_name=name))
        current = self._control.registry.resolve(name)
        has_sequences = current.config.sequence_batching or candidate.config.sequence_batching
        if has_sequences and (plan.shadow or plan.canary):
            if candidate.is_on_trial:
                await self._control.unregister(name, candidate.id.version)
            raise InvalidArgument(
                f"Model {name} keeps sequences on one worker, so its requests cannot be divided; "
                "use shadow=0 and an empty canary."
            )
        return candidate

    def of(self, name: str) -> list[RolloutReport]:
        """Those of `name`, the newest first. Raises RolloutNotFound if there are none."""
        found = [report for report in self._ended if report.name == name]
        if name in self._active:
            found.insert(0, self._active[name].report())
        if not found:
            raise RolloutNotFound(f"There has been no rollout of model {name}.")
        return found

    def abort(self, name: str) -> RolloutReport:
        """The one under way; the new version gets no requests any more.

        Raises RolloutNotFound, RolloutConflict if it is too late.
        """
        rollout = self._active.get(name)
        if rollout is None:
            raise RolloutNotFound(f"No rollout of model {name} is under way.")
        if not rollout.is_on_trial:
            raise RolloutConflict(
                f"The rollout of model {name} is over but for the tidying up "
                f"({rollout.state.value})."
            )
        rollout.stop(RolloutState.ABORTED, "aborted by an operator")
        return rollout.report()

    async def close(self) -> None:
        """The server stops: what is on trial is left where it is."""
        tasks = [rollout.task for rollout in self._active.values() if rollout.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What operators do meanwhile.

    def _unregistering(self, model: Model) -> None:
        rollout = self._active.get(model.id.name)
        if rollout is not None and rollout.candidate is model:
            reason = f"version {model.id.version} was unregistered"
            rollout.stop(RolloutState.ABORTED, reason, keeps_candidate=True)

    def _default_was_set(self, model: Model) -> None:
        rollout = self._active.get(model.id.name)
        if rollout is not None and rollout.current is not model:
            rollout.stop(
                RolloutState.ABORTED,
                f"version {model.id.version} was made the default by hand",
                keeps_candidate=rollout.candidate is model,
            )

    def _rollout_ended(self, rollout: Rollout) -> None:
        if self._active.get(rollout.name) is rollout:
            del self._active[rollout.name]
            self._ended.appendleft(rollout.report())


def _report_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s failed.", task.get_name(), exc_info=error)
