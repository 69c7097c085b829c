"""What a model's own file changes of the server's settings; changes that come together."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))  # fakes.py

from fakes import wait_until

from ts_frontend.archive.manifest import Manifest
from ts_frontend.archive.model_config import ModelFileConfig, TorchRunConfig
from ts_frontend.archive.model_store import ModelStore
from ts_frontend.control_plane import ControlPlane, Defaults, Registration, _with_file
from ts_frontend.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ModelVersionNotFound,
    NotEnoughDevices,
    ServingError,
    WorkerStartFailed,
)
from ts_frontend.core.model import ModelConfig, ModelId, WorkerCare
from ts_frontend.core.registry import ModelRegistry
from ts_frontend.snapshot import ModelSnapshot
from ts_frontend.workers.pool import WorkerPool
from ts_frontend.workers.worker import Worker

SERVER = WorkerCare(death_retries=3, max_requests=1000, max_memory_bytes=1 << 30)


def care_of(**stated: object) -> WorkerCare:
    file = ModelFileConfig(**stated)
    return _with_file(ModelConfig(care=SERVER), file, Defaults()).care


def test_what_a_file_does_not_say_is_the_servers() -> None:
    assert care_of() == SERVER


def test_what_a_file_says_counts_also_where_it_is_nothing() -> None:
    assert care_of(
        idempotent=False,
        worker_death_retries=0,
        isolate_batch_failures=False,
        ping_timeout_s=9,
        cancel_grace_s=5,
        max_worker_requests=0,
        max_worker_age_s=60,
        max_worker_memory_mb=2048,
    ) == WorkerCare(
        is_idempotent=False,
        death_retries=0,
        is_isolating=False,
        ping_timeout_s=9,
        cancel_grace_s=5,
        max_requests=0,
        max_age_s=60,
        max_memory_bytes=2 << 30,
    )


@pytest.mark.parametrize(
    ("stated", "sequences"),
    [
        ({}, 4),
        ({"min_workers": 2}, 8),
        ({"max_num_sequence": 3, "min_workers": 2}, 3),
    ],
)
def test_unless_a_file_says_how_many_sequences_they_fill_the_batches(
    stated: dict[str, int], sequences: int
) -> None:
    config, file = ModelConfig(batch_size=4), ModelFileConfig(sequence_batching=True, **stated)
    assert _with_file(config, file, Defaults()).max_num_sequence == sequences
    as_torchserve = _with_file(config, file, Defaults(is_torchserve_compatible=True))
    assert as_torchserve.max_num_sequence == stated.get("max_num_sequence", 1)


# Changes of one name that come together.


class HeldPool(WorkerPool):
    """Its close takes until it is let go; then nobody has loaded the model."""

    def __init__(self) -> None:
        self.min_workers = self.max_workers = 0
        self.scaled: list[tuple[int, int]] = []
        self.may_close = asyncio.Event()
        self.closed = asyncio.Event()

    def scale(self, min_workers: int, max_workers: int, grace_s: float) -> list[Worker]:
        self.scaled.append((min_workers, max_workers))
        return []

    async def wait_loaded(self, workers: Iterable[Worker]) -> ServingError | None:
        await self.closed.wait()
        return WorkerStartFailed("The worker was stopped before it had loaded the model.")

    def remove(self, workers: Iterable[Worker], reason: str = "") -> None:
        pass

    async def close(self, grace_s: float) -> None:
        self.closed.set()
        await self.may_close.wait()


class EmptyStore(ModelStore):
    """Every location is an archive of its name, version and nothing else: `m/2.0`.

    config: the file of all of them.
    """

    def __init__(self, config: ModelFileConfig | None = None) -> None:
        self.released = 0
        self.config = config

    async def open(self, url: str, *, s3_sse_kms: bool = False) -> SimpleNamespace:
        name, _, version = url.partition("/")
        manifest = Manifest(model_name=name, model_version=version, handler="handler")
        return SimpleNamespace(
            path="/nowhere", manifest=manifest, config=self.config, file_name=name
        )

    async def release(self, archive: SimpleNamespace) -> None:
        self.released += 1


def new_control(store: EmptyStore | None = None, **defaults: float) -> ControlPlane:
    return ControlPlane(
        store or EmptyStore(), ModelRegistry(), lambda model: HeldPool(), Defaults(**defaults)
    )


def pool_of(control: ControlPlane, name: str, version: str) -> HeldPool:
    pool = control.pools[control.registry.resolve(name, version)]
    assert isinstance(pool, HeldPool)
    return pool


IMPOSSIBLE = ModelFileConfig(min_workers=3, max_workers=2)


async def test_a_model_with_an_impossible_number_of_workers_is_refused_and_not_kept() -> None:
    store = EmptyStore(IMPOSSIBLE)
    control = new_control(store)
    with pytest.raises(InvalidArgument, match="max_worker cannot be less than min_worker"):
        await control.register(Registration("m/1", initial_workers=1))
    assert list(control.registry) == []
    assert control.pools == {}
    assert store.released == 1


async def test_a_start_goes_on_without_impossible_numbers_of_workers() -> None:
    control = new_control(EmptyStore(IMPOSSIBLE), startup_workers=4)
    assert await control.load_all("m/1") == []
    assert pool_of(control, "m", "1").scaled == [(4, 4)]


SPANNING = {"parallel_type": "tp", "torchrun": TorchRunConfig(nproc_per_node=2)}


async def test_a_model_that_spans_more_gpus_than_there_are_is_refused_and_not_kept() -> None:
    store = EmptyStore(ModelFileConfig(**SPANNING))
    control = new_control(store, gpu_count=1)
    wanted = Registration("m/1", initial_workers=1, is_synchronous=False)
    registering = asyncio.create_task(control.register(wanted))
    await wait_until(lambda: control.pools)
    (pool,) = control.pools.values()
    assert isinstance(pool, HeldPool)
    pool.may_close.set()
    with pytest.raises(NotEnoughDevices, match=r"gpu devices for model:m parallelLevel:2$"):
        await registering
    assert list(control.registry) == []
    assert store.released == 1


async def test_a_snapshot_of_a_machine_with_more_gpus_is_kept_for_it() -> None:
    control = new_control(EmptyStore(ModelFileConfig(**SPANNING)), gpu_count=1)
    stored = ModelSnapshot("m", "1", "m/1", min_workers=2, max_workers=2)
    restoring = asyncio.create_task(control.restore([stored]))
    await wait_until(lambda: control.pools)
    (pool,) = control.pools.values()
    assert isinstance(pool, HeldPool)
    pool.may_close.set()
    assert await restoring == ["m/1"]
    assert list(control.registry) == []
    assert control.snapshot() == [stored]


@pytest.mark.parametrize(
    ("stated", "gpus", "scaled"),
    [
        ({}, 5, (2, 2)),
        ({"device_ids": (0, 1, 3)}, 5, (1, 1)),
        ({}, 0, (3, 3)),  # on the CPU there is room
        ({"device_type": "cpu"}, 5, (3, 3)),
    ],
)
async def test_no_more_workers_than_there_are_gpus_for(
    stated: dict[str, object], gpus: int, scaled: tuple[int, int]
) -> None:
    control = new_control(EmptyStore(ModelFileConfig(**SPANNING, **stated)), gpu_count=gpus)
    await control.register(Registration("m/1", initial_workers=3, is_synchronous=False))
    assert pool_of(control, "m", "1").scaled == [scaled]
    await control.scale("m", None, 3, 4, False)
    assert pool_of(control, "m", "1").scaled[1] == ((3, 4) if scaled == (3, 3) else scaled)


async def test_devices_that_are_not_there_are_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = ModelFileConfig(device_type="gpu", device_ids=(0, 7))
    await new_control(EmptyStore(file), gpu_count=2).register(Registration("m/1"))
    assert "Model m_1: deviceIds [0, 7] is not used: there are 2 GPUs" in caplog.text
    await new_control(EmptyStore(file), gpu_count=0).register(Registration("m/1"))
    assert "deviceType gpu, and no GPU for this server" in caplog.text


async def test_a_scale_that_waited_for_the_unregister_of_its_version_starts_nobody() -> None:
    control = new_control()
    for version in ("1", "2", "3"):
        await control.register(Registration(f"m/{version}"))
    second, third = pool_of(control, "m", "2"), pool_of(control, "m", "3")
    second.may_close.set()
    async with asyncio.TaskGroup() as group:
        group.create_task(control.unregister("m", "3"))
        await third.closed.wait()  # it has the name for itself
        group.create_task(control.unregister("m", "2"))
        await asyncio.sleep(0)
        scaling = group.create_task(refusal_of(control.scale("m", "2", 1, 1, True)))
        await asyncio.sleep(0)
        third.may_close.set()
    assert isinstance(scaling.result(), ModelVersionNotFound)
    assert second.scaled == []


async def test_a_register_whose_version_is_unregistered_meanwhile_hears_of_its_workers() -> None:
    control = new_control()
    wanted = Registration("m/1", initial_workers=1)
    async with asyncio.TaskGroup() as group:
        registering = group.create_task(refusal_of(control.register(wanted)))
        await wait_until(lambda: control.pools and pool_of(control, "m", "1").scaled)
        pool = pool_of(control, "m", "1")
        group.create_task(control.unregister("m", "1"))
        await pool.closed.wait()
        await asyncio.sleep(0)
        pool.may_close.set()
    assert isinstance(registering.result(), WorkerStartFailed)
    assert not control.pools


class ShrinkingPool(WorkerPool):
    """Its workers load when the test says so; a scale takes surplus ones out at once."""

    def __init__(self) -> None:
        self.workers = []
        self.min_workers = self.max_workers = 0
        self.changed = asyncio.Event()
        self.has_loaded = False

    def scale(self, min_workers: int, max_workers: int, grace_s: float) -> list[Worker]:
        del self.workers[max_workers:]
        started: list[Any] = [
            SimpleNamespace(is_healthy=True, number=number)
            for number in range(len(self.workers), min_workers)
        ]
        self.workers += started
        self.changed.set()
        return started

    async def wait_loaded(self, workers: Iterable[Worker]) -> ServingError | None:
        while all(worker in self.workers for worker in workers):
            if self.has_loaded:
                return None
            await self.changed.wait()
            self.changed.clear()
        return WorkerStartFailed("stopped", was_stopped=True)


async def test_a_scale_down_during_a_register_takes_workers_and_not_the_model() -> None:
    pool = ShrinkingPool()
    control = ControlPlane(EmptyStore(), ModelRegistry(), lambda model: pool, Defaults())
    registering = asyncio.create_task(control.register(Registration("m/1", initial_workers=3)))
    await wait_until(lambda: len(pool.workers) == 3)
    await control.scale("m", None, 1, 1, False)
    await asyncio.sleep(0)
    pool.has_loaded = True
    pool.changed.set()
    scaled = await registering
    assert not scaled.is_complete  # not as many as were asked for: 206
    assert [model.id for model in control.registry] == [ModelId("m", "1")]


async def test_a_default_that_could_not_be_started_leaves_its_place_to_a_sibling() -> None:
    """A default that was gone had answered for its name: with errors of the server, for ever."""
    control = new_control()
    default_set: list[ModelId] = []
    unregistered: list[ModelId] = []
    control.on_default_set = lambda model: default_set.append(model.id)
    control.on_unregister = lambda model: unregistered.append(model.id)
    async with asyncio.TaskGroup() as group:
        wanted = Registration("m/1", initial_workers=1)
        registering = group.create_task(refusal_of(control.register(wanted)))
        await wait_until(lambda: control.pools and pool_of(control, "m", "1").scaled)
        await control.register(Registration("m/2"))
        pool = pool_of(control, "m", "1")
        pool.may_close.set()
        pool.closed.set()  # it has not loaded
    assert isinstance(registering.result(), WorkerStartFailed)
    heir = control.registry.resolve("m")
    assert heir.id == ("m", "2")
    assert heir in control.pools
    assert (unregistered, default_set) == ([("m", "1")], [("m", "2")])
    pool_of(control, "m", "2").may_close.set()
    await control.unregister("m")
    assert not control.pools


async def test_a_register_that_fails_while_its_version_goes_slowly_takes_it_out_once() -> None:
    control = new_control(unregister_timeout_s=0)
    async with asyncio.TaskGroup() as group:
        wanted = Registration("m/1", initial_workers=1)
        registering = group.create_task(refusal_of(control.register(wanted)))
        await wait_until(lambda: control.pools and pool_of(control, "m", "1").scaled)
        pool = pool_of(control, "m", "1")
        assert isinstance(await refusal_of(control.unregister("m", "1")), DeadlineExceeded)
        assert isinstance(await registering, WorkerStartFailed)
        pool.may_close.set()
    await wait_until(lambda: not control.pools)


async def test_a_client_that_leaves_during_its_unregister_leaves_no_archive_behind() -> None:
    store = EmptyStore()
    control = new_control(store)
    removed: list[ModelId] = []
    control.on_removed = lambda model: removed.append(model.id)
    await control.register(Registration("m/1"))
    pool = pool_of(control, "m", "1")
    leaving = asyncio.create_task(control.unregister("m", "1"))
    await pool.closed.wait()
    leaving.cancel()
    await asyncio.wait({leaving})
    assert leaving.cancelled()
    pool.may_close.set()
    await wait_until(lambda: removed == [("m", "1")])
    assert (store.released, len(control.pools)) == (1, 0)
    await control.close(0)


async def test_an_unregister_that_takes_too_long_is_finished_later() -> None:
    store = EmptyStore()
    control = new_control(store, unregister_timeout_s=0)
    await control.register(Registration("m/1"))
    pool = pool_of(control, "m", "1")
    assert isinstance(await refusal_of(control.unregister("m", "1")), DeadlineExceeded)
    closing = asyncio.create_task(control.close(0))
    await pool.closed.wait()
    pool.may_close.set()
    await closing
    assert (store.released, len(control.pools)) == (1, 0)


async def refusal_of(verb: Awaitable[object]) -> ServingError:
    with pytest.raises(ServingError) as caught:
        await verb
    return caught.value
