"""`RolloutPlan`: what an operator asks of a rollout; the names are those of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from ts_frontend.core.errors import InvalidArgument

MAX_STEPS = 100
MAX_SECONDS = 7 * 24 * 3600

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]
Limit = Annotated[float, msgspec.Meta(ge=0)]  # 0: none
Fate = Literal["unregister", "keep"]


class RolloutPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """version, url:    the new version: one that is registered, or an archive; one of the two.
    initial_workers:  of the new version; 0: as many as the current one has.
    shadow:           percentage of the requests that are copied to it, for `shadow_s`.
    canary:           percentages of the requests that it answers, one step each, for `step_s`;
                      none: all at once, when it is loaded.
    sticky_header:    requests with the same value in this header stay with the same version.
    max_error_rate:   how much larger its share of failed requests may be than the current one's.
    max_p99_ms, max_p99_ratio: limits of its latency, in itself and in relation to the current one.
    min_requests:     how many it must have had before a step is judged and can end.
    timeout_s:        from the end of its load to the switch.
    drain_s:          how long requests that it or the current one still has may take at the end.
    old_version, failed_version: what becomes of the one that is not live at the end; "" for the
                      failed one: unregistered if the rollout has registered it.
    """

    version: str = ""
    url: str = ""
    initial_workers: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    shadow: Percent = 0
    shadow_s: Seconds = 60
    canary: tuple[Annotated[float, msgspec.Meta(gt=0, le=100)], ...] = (5, 25, 50)
    step_s: Seconds = 60
    sticky_header: str = ""
    max_error_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    max_p99_ms: Limit = 0
    max_p99_ratio: Limit = 0
    min_requests: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 20
    timeout_s: Seconds = 3600
    drain_s: Seconds = 60
    old_version: Fate = "unregister"
    failed_version: Fate | Literal[""] = ""

    @property
    def is_failed_unregistered(self) -> bool:
        return self.failed_version == "unregister" or (not self.failed_version and bool(self.url))


def parse_plan(values: Mapping[str, Any]) -> RolloutPlan:
    """From a JSON object, or from a query, where all is text. Raises InvalidArgument."""
    canary = values.get("canary")
    if isinstance(canary, str):
        values = {**values, "canary": [part for part in canary.split(",") if part.strip()]}
    try:
        plan = msgspec.convert(dict(values), RolloutPlan, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{error}. docs/rollout.md has the parameters.") from error
    if bool(plan.version) == bool(plan.url):
        raise InvalidArgument(
            "Either version (one that is registered) or url (of an archive to register) is "
            "required."
        )
    if len(plan.canary) > MAX_STEPS or list(plan.canary) != sorted(plan.canary):
        raise InvalidArgument(
            f"canary should be up to {MAX_STEPS} percentages, each at least as large as the one "
            "before."
        )
    return plan
