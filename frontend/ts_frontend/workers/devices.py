"""Which GPU a new worker gets: TorchServe's round robin (contract, config section 10)."""

from __future__ import annotations

from collections.abc import Sequence


class DeviceAllocator:
    """The server's GPUs and the turn-takers over them.

    A model with `device_ids` goes round its own list; all others share one turn over all GPUs.
    TorchServe starts that shared turn at GPU 1; here it starts at GPU 0, where people look for the
    first worker, unless `first` says otherwise.
    """

    def __init__(self, gpu_count: int, first: int = 0) -> None:
        self.gpu_count = gpu_count
        self._next_shared = first
        self._next_of: dict[str, int] = {}

    def next_gpu(
        self, model_key: str, device_type: str, device_ids: Sequence[int] | None
    ) -> int | None:
        """The GPU for one more worker, None for the CPU."""
        if device_type != "gpu" or self.gpu_count == 0:
            return None
        if device_ids:
            turn = self._next_of.get(model_key, 0)
            self._next_of[model_key] = turn + 1
            return device_ids[turn % len(device_ids)]
        gpu = self._next_shared % self.gpu_count
        self._next_shared += 1
        return gpu

    def next_slice(
        self, model_key: str, level: int, device_type: str, device_ids: Sequence[int] | None
    ) -> list[int]:
        """The `level` GPUs of one more parallel worker, [] for the CPU."""
        if device_type != "gpu" or self.gpu_count == 0:
            return []
        pool = list(device_ids) if device_ids else list(range(self.gpu_count))
        first = self._next_of.get(model_key, 0)
        self._next_of[model_key] = first + level
        return [pool[(first + k) % len(pool)] for k in range(level)]

    def forget(self, model_key: str) -> None:
        self._next_of.pop(model_key, None)
