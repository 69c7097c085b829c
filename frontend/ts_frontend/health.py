"""Is the server well? TorchServe's `/ping` rule."""

from __future__ import annotations

from collections.abc import Mapping

from ts_frontend.core.model import Model
from ts_frontend.core.registry import ModelRegistry
from ts_frontend.workers.pool import WorkerPool


class Health:
    def __init__(self, registry: ModelRegistry, pools: Mapping[Model, WorkerPool]) -> None:
        self._registry = registry
        self._pools = pools

    @property
    def is_healthy(self) -> bool:
        """Every default version has its wanted number of workers that serve or are on their way
        there.
        """
        return all(self.has_wanted_workers(model) for model in self._registry.defaults())

    def has_wanted_workers(self, model: Model) -> bool:
        pool = self._pools.get(model)
        return pool is not None and pool.healthy_count >= pool.min_workers

    def is_ready(self, model: Model) -> bool:
        """KServe's question about one model: has it any worker at all?"""
        pool = self._pools.get(model)
        return pool is not None and bool(pool.workers)
