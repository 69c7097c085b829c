"""Is the server well? TorchServe's `/ping` rule, and the stricter question whether it is ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ts_frontend.core.model import Model
from ts_frontend.core.registry import ModelRegistry
from ts_frontend.workers.pool import WorkerPool


class NotReady(NamedTuple):
    """version: "" for what could not even be registered; its name is then where it should be."""

    name: str
    version: str
    reason: str


class Health:
    """not_loaded: what the server should have loaded when it started and could not, with why.

    is_strict: a server is ready when each of its models is.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        pools: Mapping[Model, WorkerPool],
        not_loaded: Mapping[str, str] | None = None,
        *,
        is_strict: bool = True,
    ) -> None:
        self._registry = registry
        self._pools = pools
        self._not_loaded = {} if not_loaded is None else not_loaded
        self._is_strict = is_strict

    @property
    def is_healthy(self) -> bool:
        """Every default version has its wanted number of workers that serve or are on their way
        there.
        """
        return all(self.has_wanted_workers(model) for model in self._registry.defaults())

    def has_wanted_workers(self, model: Model) -> bool:
        pool = self._pools.get(model)
        if pool is None:
            return False
        return pool.is_dormant or pool.healthy_count >= pool.min_workers

    def is_ready(self, model: Model) -> bool:
        """KServe's question about one model: has it any worker at all?"""
        pool = self._pools.get(model)
        return pool is not None and (pool.is_dormant or bool(pool.workers))

    def not_ready(self) -> list[NotReady]:
        """What keeps the server from being ready: models that should have workers, none of which
        has loaded. One that its first request loads does not count before that fails.
        """
        if not self._is_strict:
            return []
        found = [NotReady(name, "", reason) for name, reason in self._not_loaded.items()]
        for model in self._registry:
            if reason := self._why_not(model):
                found.append(NotReady(*model.id, reason))
        return found

    def _why_not(self, model: Model) -> str:
        pool = self._pools.get(model)
        if pool is None or not pool.min_workers or pool.is_dormant or pool.ready_count:
            return ""
        if pool.unhealthy_reason:
            return pool.unhealthy_reason
        return "" if model.config.is_lazy else "its workers are starting"
