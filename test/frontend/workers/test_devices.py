"""Which GPU each new worker gets, as a table of turns."""

from __future__ import annotations

import pytest

from ts_frontend.workers.devices import DeviceAllocator

# GPUs of the server; then per worker: model, device type, its device ids -> GPU.
GPU, CPU = "gpu", "cpu"
TURNS = [
    (0, [("a", GPU, None, None), ("a", GPU, (0, 1), None)]),
    (2, [("a", CPU, None, None), ("a", CPU, (0,), None), ("a", GPU, None, 0)]),
    # One turn for all models that name no devices.
    (3, [("a", GPU, None, 0), ("b", GPU, None, 1), ("a", GPU, None, 2), ("b", GPU, None, 0)]),
    # A model with devices has a turn of its own, from its first on.
    (4, [("a", GPU, (3, 1), 3), ("b", GPU, None, 0), ("a", GPU, (3, 1), 1), ("a", GPU, (3, 1), 3)]),
    (4, [("a", GPU, (2,), 2), ("a", GPU, (2,), 2), ("b", GPU, (2, 3), 2)]),
    (1, [("a", GPU, None, 0), ("a", GPU, None, 0)]),
    (2, [("a", GPU, (), 0), ("a", GPU, (), 1)]),  # an empty list names none
]


@pytest.mark.parametrize(("gpu_count", "workers"), TURNS)
def test_ordinary_workers(gpu_count: int, workers: list[tuple[str, str, object, object]]) -> None:
    devices = DeviceAllocator(gpu_count)
    for model, device_type, device_ids, gpu in workers:
        assert devices.next_gpu(model, device_type, device_ids) == gpu  # type: ignore[arg-type]


def test_torchserves_first_gpu() -> None:
    devices = DeviceAllocator(3, first=1)
    assert [devices.next_gpu("a", GPU, None) for _ in range(4)] == [1, 2, 0, 1]


SLICES = [
    (0, 2, GPU, None, [[], []]),
    (4, 2, CPU, None, [[], []]),
    (4, 2, GPU, None, [[0, 1], [2, 3], [0, 1]]),
    (8, 3, GPU, None, [[0, 1, 2], [3, 4, 5], [6, 7, 0]]),
    (8, 2, GPU, (5, 1, 7, 3), [[5, 1], [7, 3], [5, 1]]),
]


@pytest.mark.parametrize(("gpu_count", "level", "device_type", "device_ids", "slices"), SLICES)
def test_parallel_workers(
    gpu_count: int,
    level: int,
    device_type: str,
    device_ids: tuple[int, ...] | None,
    slices: list[list[int]],
) -> None:
    devices = DeviceAllocator(gpu_count)
    found = [devices.next_slice("a", level, device_type, device_ids) for _ in slices]
    assert found == slices


def test_parallel_models_do_not_share_a_turn() -> None:
    devices = DeviceAllocator(4)
    assert devices.next_slice("a", 2, GPU, None) == [0, 1]
    assert devices.next_slice("b", 2, GPU, None) == [0, 1]
    assert devices.next_gpu("c", GPU, None) == 0


def test_a_model_that_comes_back_starts_its_turn_afresh() -> None:
    devices = DeviceAllocator(4)
    assert devices.next_gpu("a", GPU, (3, 1)) == 3
    devices.forget("a")
    devices.forget("never there")
    assert devices.next_gpu("a", GPU, (3, 1)) == 3
