"""Is the server well? TorchServe's `/ping` rule, and the stricter question whether it is ready."""

from __future__ import annotations

import asyncio
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
    answer_s:  how long a worker may take to prove that it answers.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        pools: Mapping[Model, WorkerPool],
        not_loaded: Mapping[str, str] | None = None,
        *,
        is_strict: bool = True,
        answer_s: float = 2,
    ) -> None:
        self._registry = registry
        self._pools = pools
        self._not_loaded = {} if not_loaded is None else not_loaded
        self._is_strict = is_strict
        self._answer_s = answer_s

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

    def can_serve(self, model: Model) -> bool:
        """Open Inference's question about one model: would a request find a worker, and no fewer
        of them than are wanted?
        """
        pool = self._pools.get(model)
        if pool is None or not self.has_wanted_workers(model):
            return False
        return pool.is_dormant or pool.healthy_count > 0

    def is_ready(self, model: Model) -> bool:
        """KServe's question about one model: has it any worker at all?"""
        pool = self._pools.get(model)
        return pool is not None and (pool.is_dormant or bool(pool.workers))

    async def find_not_ready(self) -> list[NotReady]:
        """What keeps the server from being ready: models that should have workers, none of which
        answers. One that its first request loads does not count before that fails.
        """
        if not self._is_strict:
            return []
        found = [NotReady(name, "", reason) for name, reason in self._not_loaded.items()]
        wanted = [
            model
            for model in self._registry
            if (pool := self._pools.get(model)) is not None and pool.min_workers
        ]
        reasons = await asyncio.gather(*map(self._why_not, wanted))
        found += (
            NotReady(*model.id, reason)
            for model, reason in zip(wanted, reasons, strict=True)
            if reason
        )
        return found

    async def find_why_not_ready(self, model: Model) -> str:
        """Why a request for this model would not be served now; "" where it would be."""
        pool = self._pools.get(model)
        if pool is None or not (pool.workers or pool.is_dormant or pool.unhealthy_reason):
            return "it has no workers"
        return await self._why_not(model)

    async def _why_not(self, model: Model) -> str:
        pool = self._pools[model]
        if pool.is_dormant:
            return ""
        if not pool.ready_count:
            if pool.unhealthy_reason:
                return pool.unhealthy_reason
            return "" if model.config.is_lazy else "its workers are starting"
        if await pool.is_answering(self._answer_s):
            return ""
        return f"none of its workers answers within {self._answer_s:g} s"
