"""May the new version go on? A plain function of the plan and of both versions' figures."""

from __future__ import annotations

import enum
from typing import NamedTuple

from ts_frontend.core.traffic import Figures
from ts_frontend.rollout.plan import RolloutPlan


class Ruling(enum.Enum):
    WAIT = "wait"
    NEXT = "next"  # the step is over
    FAIL = "fail"


class Judgement(NamedTuple):
    """reason: why it failed, or what the step still waits for."""

    ruling: Ruling
    reason: str = ""


def judge(
    plan: RolloutPlan,
    new: Figures,
    current: Figures,
    *,
    ready_workers: int,
    elapsed_s: float,
    step_s: float,
) -> Judgement:
    """How a step stands. elapsed_s: since it began; step_s: how long it should last."""
    if not ready_workers:
        cause = f": {new.last_failure}" if new.last_failure else ""
        return Judgement(Ruling.FAIL, f"no worker of the new version is ready{cause}")
    theirs = current.summary()
    limit_ms, limit_text = _latency_limit(plan, theirs.p99_ms, theirs.requests)
    own = new.summary(limit_ms / 1000)
    if own.requests and own.requests >= plan.min_requests:
        allowed = theirs.failure_rate + plan.max_error_rate
        if own.failure_rate > allowed:
            return Judgement(
                Ruling.FAIL,
                f"{own.failures} of {own.requests} requests failed, more than {allowed:.4g} "
                f"(max_error_rate); the last: {new.last_failure}",
            )
        if limit_ms and own.p99_ms > limit_ms:
            return Judgement(
                Ruling.FAIL, f"the 99 % latency of {own.p99_ms:.4g} ms is above {limit_text}"
            )
    if own.requests < plan.min_requests:
        return Judgement(Ruling.WAIT, f"{own.requests} of {plan.min_requests} requests")
    if elapsed_s < step_s:
        return Judgement(Ruling.WAIT, f"{elapsed_s:.0f} of {step_s:g} s")
    return Judgement(Ruling.NEXT)


def _latency_limit(plan: RolloutPlan, current_p99_ms: float, requests: int) -> tuple[float, str]:
    """In milliseconds, and where it comes from; 0: none.

    The current version is a measure once it has had `min_requests` too.
    """
    limit_ms, text = plan.max_p99_ms, f"{plan.max_p99_ms:g} ms (max_p99_ms)"
    if plan.max_p99_ratio and requests and requests >= plan.min_requests:
        by_ratio_ms = plan.max_p99_ratio * current_p99_ms
        if not limit_ms or by_ratio_ms < limit_ms:
            limit_ms = by_ratio_ms
            text = f"{plan.max_p99_ratio:g} times the current version's {current_p99_ms:.4g} ms"
            text += " (max_p99_ratio)"
    return limit_ms, text
