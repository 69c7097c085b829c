"""`Rollout`: one new version on its way to be the default one, or back.

Load and self-test, shadow, canary steps, switch, drain of the old version. Whatever fails on the
way takes the new version out of the traffic in the same turn of the event loop, and the old one,
which has never gone, answers all. `stop` does that; the task (`run`) goes from step to step and
tidies up.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ts_frontend.control_plane import ControlPlane
from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import DeadlineExceeded, ServingError
from ts_frontend.core.model import Model
from ts_frontend.core.traffic import Figures, Summary, Traffic, TrialMeters
from ts_frontend.rollout.judge import Ruling, judge
from ts_frontend.rollout.plan import RolloutPlan

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.2
DRAIN_LOOK_S = 0.02
# For what comes, naming the version, between the end of the drain and that of its workers.
LAST_GRACE_S = 1.0


class RolloutState(enum.Enum):
    LOADING = "LOADING"
    SHADOW = "SHADOW"
    CANARY = "CANARY"
    SWITCHING = "SWITCHING"
    UNDOING = "UNDOING"
    DONE = "DONE"
    ROLLED_BACK = "ROLLED_BACK"
    ABORTED = "ABORTED"


_NEXT = {
    RolloutState.LOADING: {
        RolloutState.SHADOW,
        RolloutState.CANARY,
        RolloutState.SWITCHING,
        RolloutState.UNDOING,
    },
    RolloutState.SHADOW: {RolloutState.CANARY, RolloutState.SWITCHING, RolloutState.UNDOING},
    RolloutState.CANARY: {RolloutState.CANARY, RolloutState.SWITCHING, RolloutState.UNDOING},
    RolloutState.SWITCHING: {RolloutState.DONE, RolloutState.ROLLED_BACK},  # the latter: a fault
    RolloutState.UNDOING: {RolloutState.ROLLED_BACK, RolloutState.ABORTED},
}
_ON_TRIAL = (RolloutState.LOADING, RolloutState.SHADOW, RolloutState.CANARY)


@dataclass(frozen=True, slots=True)
class Step:
    """What a step was and how it went. started_at: seconds since the epoch."""

    state: RolloutState
    percent: float
    started_at: float
    seconds: float
    new: Summary
    current: Summary


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """One rollout as an operator sees it.

    state, percent:  of the present step, whose figures are `new` and `current`. steps: those that
                     are over.
    reason:          why it was undone; "" if it was not. waits_for: what the step waits for.
    started_at, ended_at: seconds since the epoch; ended_at 0 while it is under way.
    moved, skipped, differing: as in `Traffic`.
    """

    name: str
    current_version: str
    new_version: str
    plan: RolloutPlan
    state: RolloutState
    percent: float
    reason: str
    waits_for: str
    started_at: float
    ended_at: float
    steps: Sequence[Step]
    new: Summary
    current: Summary
    moved: int
    skipped: int
    differing: int


class RolloutMeters(Protocol):
    def trial_meters(self, name: str, version: str) -> TrialMeters: ...

    def set_canary_percent(self, name: str, version: str, percent: float) -> None: ...

    def rollout_ended(self, name: str, outcome: str) -> None: ...


class _Stopped(Exception):
    """`stop` was called."""


class Rollout:
    """on_ended: called once, when nothing more will happen."""

    def __init__(
        self,
        control: ControlPlane,
        current: Model,
        candidate: Model,
        plan: RolloutPlan,
        meters: RolloutMeters,
        on_ended: Callable[[Rollout], None],
    ) -> None:
        self.plan = plan
        self.current = current
        self.candidate = candidate
        self.state = RolloutState.LOADING
        self.percent = 0.0
        self.reason = ""
        self.waits_for = ""
        self.steps: list[Step] = []
        self.started_at = self._step_at = time.time()
        self.ended_at = 0.0
        name = candidate.id.name
        self.traffic = Traffic(
            current,
            candidate,
            sticky_header=plan.sticky_header.encode(),
            current_figures=Figures(meters.trial_meters(name, current.id.version)),
            candidate_figures=Figures(meters.trial_meters(name, candidate.id.version)),
        )
        self.task: asyncio.Task[None] | None = None
        self._control = control
        self._meters = meters
        self._on_ended = on_ended
        pool = control.pools[candidate]
        self._workers_before = pool.min_workers, pool.max_workers
        self._step_s = monotonic()
        self._outcome = RolloutState.DONE
        self._stop = asyncio.Event()
        self._is_candidate_kept = False

    @property
    def name(self) -> str:
        return self.candidate.id.name

    @property
    def is_on_trial(self) -> bool:
        """Whether it can still be stopped."""
        return self.state in _ON_TRIAL and not self._stop.is_set()

    def report(self) -> RolloutReport:
        traffic = self.traffic
        return RolloutReport(
            self.name,
            self.current.id.version,
            self.candidate.id.version,
            self.plan,
            self.state,
            self.percent,
            self.reason,
            self.waits_for,
            self.started_at,
            self.ended_at,
            tuple(self.steps),
            traffic.candidate_figures.summary(),
            traffic.current_figures.summary(),
            traffic.moved,
            traffic.skipped,
            traffic.differing,
        )

    def stop(self, outcome: RolloutState, reason: str, *, keeps_candidate: bool = False) -> None:
        """Take the new version out of the traffic, now, and then away. Nothing if it is too late.

        keeps_candidate: what becomes of it is somebody else's business.
        """
        if not self.is_on_trial:
            return
        self.reason = reason
        self._outcome = outcome
        self._is_candidate_kept = keeps_candidate
        if keeps_candidate:
            self.candidate.is_on_trial = False  # in this turn: a snapshot may be taken in the next
        self._stop.set()
        self.traffic.close()
        if outcome is RolloutState.ROLLED_BACK:
            self.traffic.move_all()
        self._meters.set_canary_percent(self.name, self.candidate.id.version, 0)
        log = logger.error if outcome is RolloutState.ROLLED_BACK else logger.warning
        log(
            "Rollout of %s: %s at %s; version %s answers all requests. %s",
            self.candidate.id,
            outcome.value,
            self.state.value,
            self.current.id.version,
            reason,
        )

    async def run(self) -> None:
        """To the end, good or bad."""
        try:
            try:
                await self._try()
            except _Stopped:
                await self._undo()
            else:
                await self._switch()
        except asyncio.CancelledError:  # the server stops
            self.traffic.close()
            raise
        except Exception as error:
            logger.exception("Rollout of %s failed by a fault of the server.", self.candidate.id)
            self._end_after_fault(error)
        finally:
            self.ended_at = time.time()
            self._on_ended(self)

    def _end_after_fault(self, error: Exception) -> None:
        """Whatever state it was in: the old version answers, and the end is one that clients know.

        The candidate stays registered, for somebody to look at.
        """
        self.traffic.close()
        self.candidate.is_on_trial = False
        self._add_reason(f"a fault of the server: {error!r}")
        self._meters.set_canary_percent(self.name, self.candidate.id.version, 0)
        if self.state in _ON_TRIAL:
            self._advance(RolloutState.UNDOING)
        self._advance(RolloutState.ROLLED_BACK)
        self._meters.rollout_ended(self.name, RolloutState.ROLLED_BACK.value)

    async def _try(self) -> None:
        """Up to the switch. Raises _Stopped."""
        plan = self.plan
        await self._load()
        give_up_s = monotonic() + plan.timeout_s
        if plan.shadow:
            self._advance(RolloutState.SHADOW, plan.shadow)
            self.traffic.shadow_percent = plan.shadow
            self.traffic.open()
            await self._watch(plan.shadow_s, give_up_s)
            self.traffic.shadow_percent = 0.0
        for percent in plan.canary:
            self._advance(RolloutState.CANARY, percent)
            self.traffic.canary_percent = percent
            self.traffic.open()
            self._meters.set_canary_percent(self.name, self.candidate.id.version, percent)
            await self._watch(plan.step_s, give_up_s)

    async def _load(self) -> None:
        """Workers that have loaded it, and passed its self-test. Raises _Stopped."""
        if self._stop.is_set():  # before its first turn: the old version may be gone
            raise _Stopped
        pool = self._control.pools[self.current]
        low = self.plan.initial_workers or max(1, pool.min_workers)
        high = max(low, pool.max_workers)
        load = self._control.load_on_trial(self.candidate, low, high)
        loading = asyncio.create_task(load, name=f"loading {self.candidate.id}")
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not self._stop.is_set():
                loading.result()
                await self._wait_ready()
        except ServingError as error:
            cause = getattr(error, "cause", "")
            text = error.message if not cause or cause in error.message else cause
            self.stop(RolloutState.ROLLED_BACK, f"it could not be loaded: {text}")
        finally:
            loading.cancel()
            stopping.cancel()
            await asyncio.gather(loading, stopping, return_exceptions=True)
        if self._stop.is_set():
            raise _Stopped

    async def _wait_ready(self) -> None:
        """Workers that were there before may still be loading. Raises DeadlineExceeded."""
        give_up_s = monotonic() + self.candidate.config.startup_timeout_s
        pool = self._control.pools[self.candidate]
        while not self._stop.is_set() and pool.ready_count < max(1, pool.min_workers):
            if monotonic() > give_up_s:
                raise DeadlineExceeded("its workers were not ready within startup_timeout")
            await self._wait_stopped(LOOK_INTERVAL_S)

    async def _watch(self, step_s: float, give_up_s: float) -> None:
        """Until the step is over. Raises _Stopped."""
        while True:
            await self._wait_stopped(LOOK_INTERVAL_S)
            if self._stop.is_set():
                raise _Stopped
            workers = self.candidate.workers
            judgement = judge(
                self.plan,
                self.traffic.candidate_figures,
                self.traffic.current_figures,
                ready_workers=0 if workers is None else workers.ready_count,
                elapsed_s=monotonic() - self._step_s,
                step_s=step_s,
            )
            self.waits_for = judgement.reason
            if judgement.ruling is Ruling.NEXT:
                return
            if judgement.ruling is Ruling.FAIL:
                self.stop(RolloutState.ROLLED_BACK, judgement.reason)
            elif monotonic() > give_up_s:
                reason = f"not over within {self.plan.timeout_s:g} s (timeout_s)"
                self.stop(RolloutState.ROLLED_BACK, f"{reason}: {judgement.reason}")

    async def _wait_stopped(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _switch(self) -> None:
        self._advance(RolloutState.SWITCHING, 100)
        self.traffic.close()
        self.candidate.is_on_trial = False
        self._meters.set_canary_percent(self.name, self.candidate.id.version, 0)
        self._control.set_default(self.name, self.candidate.id.version)
        if self.plan.old_version == "unregister":
            await self._take_away(self.current)
        self._advance(RolloutState.DONE)
        logger.info("Rollout of %s: done.", self.candidate.id)
        self._meters.rollout_ended(self.name, RolloutState.DONE.value)

    async def _undo(self) -> None:
        self._advance(RolloutState.UNDOING)
        if not self._is_candidate_kept:
            if self.plan.is_failed_unregistered:
                await self._take_away(self.candidate)
            else:
                self.candidate.is_on_trial = False
                await self._put_back()
        self._advance(self._outcome)
        self._meters.rollout_ended(self.name, self._outcome.value)

    async def _put_back(self) -> None:
        low, high = self._workers_before
        try:
            await self._control.scale(self.name, self.candidate.id.version, low, high, False)
        except ServingError as error:
            self._add_reason(f"its workers could not be taken back: {error.message}")

    async def _take_away(self, model: Model) -> None:
        """Unregister a version when it has finished what it has."""
        await self._drain(model)
        try:
            await self._control.unregister(self.name, model.id.version, grace_s=LAST_GRACE_S)
        except ServingError as error:
            self._add_reason(f"version {model.id.version} was not unregistered: {error.message}")

    async def _drain(self, model: Model) -> None:
        """Nobody is there to finish it where no worker is ready; then waiting is of no use."""
        pool = self._control.pools.get(model)
        give_up_s = monotonic() + self.plan.drain_s
        while pool is not None and pool.ready_count and (len(model.queue) or pool.is_busy):
            if monotonic() > give_up_s:
                logger.warning("Version %s still has requests after drain_s.", model.id)
                return
            await asyncio.sleep(DRAIN_LOOK_S)

    def _add_reason(self, text: str) -> None:
        logger.error("Rollout of %s: %s", self.candidate.id, text)
        self.reason = f"{self.reason}; {text}" if self.reason else text

    def _advance(self, state: RolloutState, percent: float = 0.0) -> None:
        """Every change of state passes here; the step that ends goes into the history."""
        if state not in _NEXT.get(self.state, ()):
            raise RuntimeError(f"a rollout cannot go from {self.state} to {state}")
        now_s = monotonic()
        self.steps.append(
            Step(
                self.state,
                self.percent,
                self._step_at,
                now_s - self._step_s,
                self.traffic.candidate_figures.summary(),
                self.traffic.current_figures.summary(),
            )
        )
        self.traffic.candidate_figures.restart()
        self.traffic.current_figures.restart()
        self.state = state
        self.percent = percent
        self.waits_for = ""
        self._step_s, self._step_at = now_s, time.time()
        logger.info("Rollout of %s: %s %g %%", self.candidate.id, state.value, percent)

    def __repr__(self) -> str:
        return f"<Rollout {self.candidate.id} {self.state.name} {self.percent:g} %>"
