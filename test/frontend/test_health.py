"""Well and ready: `/ping`'s rule, and the stricter one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_planes import FakePlanes, PlayedModel

from ts_frontend.health import Health, NotReady


@pytest.fixture
def fakes() -> FakePlanes:
    return FakePlanes()


def health_of(*played: PlayedModel, is_strict: bool = True, **not_loaded: str) -> Health:
    fakes = FakePlanes()
    pools = {}
    for one in played:
        fakes.planes.control.registry.add(one.model)
        pools[one.model] = one
    return Health(fakes.planes.control.registry, pools, not_loaded, is_strict=is_strict)


def lose_workers(played: PlayedModel, *, reason: str = "", is_lazy: bool = False) -> None:
    played.ready_count = played.healthy_count = 0
    played.unhealthy_reason = reason
    played.model.config = replace(played.model.config, is_lazy=is_lazy)


async def test_ready_when_each_model_has_a_worker_that_serves(fakes: FakePlanes) -> None:
    one, other = fakes.add("one"), fakes.add("other")
    assert await health_of(one, other).find_not_ready() == []
    lose_workers(other)
    assert await health_of(one, other).find_not_ready() == [
        NotReady("other", "1.0", "its workers are starting")
    ]
    lose_workers(other, reason="no weights")
    assert await health_of(one, other).find_not_ready() == [NotReady("other", "1.0", "no weights")]
    assert await health_of(one, other, is_strict=False).find_not_ready() == []


async def test_a_version_that_is_not_the_default_counts_too(fakes: FakePlanes) -> None:
    one, second = fakes.add("one", "1.0"), fakes.add("one", "2.0")
    lose_workers(second, reason="no weights")
    assert await health_of(one, second).find_not_ready() == [NotReady("one", "2.0", "no weights")]


async def test_a_model_that_nobody_wants_workers_for_is_no_hindrance(fakes: FakePlanes) -> None:
    one = fakes.add("one")
    lose_workers(one)
    one.min_workers = 0
    assert await health_of(one).find_not_ready() == []


async def test_a_lazy_model_counts_once_it_has_failed(fakes: FakePlanes) -> None:
    one = fakes.add("one")
    lose_workers(one, is_lazy=True)
    one.is_dormant = True
    health = health_of(one)
    assert await health.find_not_ready() == []
    assert health.is_healthy
    assert health.is_ready(one.model)
    one.is_dormant = False  # it loads
    assert await health.find_not_ready() == []
    one.unhealthy_reason = "no weights"
    assert await health.find_not_ready() == [NotReady("one", "1.0", "no weights")]


async def test_what_could_not_be_registered_at_the_start_counts(fakes: FakePlanes) -> None:
    health = health_of(fakes.add("one"), cut="it is no archive")
    assert await health.find_not_ready() == [NotReady("cut", "", "it is no archive")]


async def test_a_worker_that_does_not_answer_makes_its_model_not_ready(fakes: FakePlanes) -> None:
    one, other = fakes.add("one"), fakes.add("other")
    other.answers = False
    health = health_of(one, other)
    reason = "none of its workers answers within 2 s"
    assert await health.find_not_ready() == [NotReady("other", "1.0", reason)]
    assert await health.find_why_not_ready(one.model) == ""
    assert await health.find_why_not_ready(other.model) == reason
    assert health.is_healthy  # `/ping` keeps TorchServe's rule


async def test_one_model_without_workers_is_not_ready_for_requests(fakes: FakePlanes) -> None:
    one = fakes.add("one")
    lose_workers(one)
    one.min_workers, one.workers = 0, []
    health = health_of(one)
    assert await health.find_not_ready() == []
    assert await health.find_why_not_ready(one.model) == "it has no workers"
