"""Turns by example, then as bounds that hold whatever clients send."""

from __future__ import annotations

from collections import deque

import pytest
from fakes import chunk
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.core.batch_queue import BatchQueue
from ts_frontend.core.batching import DynamicBatching
from ts_frontend.core.errors import NoWorker
from ts_frontend.core.fair_order import Fairness, FairOrder
from ts_frontend.core.inference import InferenceRequest
from ts_frontend.core.job import Job, JobState

CLASSES = {b"high": 3, b"low": 1}
TENANTS = {b"gold": 2}
FAIRNESS = Fairness(b"x-priority", CLASSES, b"x-tenant", TENANTS)


def job_of(tenant: str = "", priority: str = "", name: str = "") -> Job:
    headers = [(b"host", b"h")]
    if tenant:
        headers.append((b"X-Tenant", tenant.encode()))
    if priority:
        headers.append((b"x-priority", priority.encode()))
    return Job(InferenceRequest(name.encode(), headers, []), 0.0)


def served(order: FairOrder) -> list[str]:
    return [order.popleft().request.id.decode() for _ in range(len(order))]


def filled(*jobs: tuple[str, str]) -> FairOrder:
    """Jobs of (tenant, priority), named by both and by their number."""
    order = FairOrder(FAIRNESS)
    for number, (tenant, priority) in enumerate(jobs):
        order.append(job_of(tenant, priority, f"{priority}{tenant}{number}"))
    return order


def test_one_key_goes_by_arrival() -> None:
    assert served(filled(*[("a", "")] * 3)) == ["a0", "a1", "a2"]


def test_keys_take_turns() -> None:
    order = filled(("a", ""), ("a", ""), ("a", ""), ("b", ""), ("", ""))
    assert served(order) == ["a0", "b3", "4", "a1", "a2"]


def test_a_heavier_key_takes_more_in_its_turn() -> None:
    order = filled(*[("gold", "")] * 4, *[("b", "")] * 3)
    assert served(order) == ["gold0", "gold1", "b4", "gold2", "gold3", "b5", "b6"]


def test_classes_take_turns_and_keys_within_them() -> None:
    order = filled(*[("a", "low")] * 3, *[("a", "high")] * 4, *[("b", "high")] * 2)
    assert served(order) == [
        "lowa0",
        "higha3",
        "highb7",
        "higha4",
        "lowa1",
        "highb8",
        "higha5",
        "higha6",
        "lowa2",
    ]


def test_an_unknown_class_is_that_of_requests_without_one() -> None:
    order = filled(("a", "vip"), ("b", ""), ("c", "high"))
    assert served(order) == ["vipa0", "highc2", "b1"]


def test_jobs_put_back_go_first() -> None:
    order = filled(("a", ""), ("b", ""))
    first = order.popleft()
    order.appendleft(first)
    assert order[1].request.id == b"b1"
    assert served(order) == ["a0", "b1"]


def test_only_what_waits_can_be_removed() -> None:
    order = filled(("a", ""))
    with pytest.raises(ValueError, match="not a job"):
        order.remove(job_of("b"))
    with pytest.raises(IndexError):
        order[1]


KEYS = st.sampled_from(["a", "b", "gold", ""])
PRIORITIES = st.sampled_from(["high", "low", "", "vip"])


@given(st.data())
def test_every_job_is_handed_out_once_or_has_left(data: st.DataObject) -> None:
    """In whatever order jobs come, are taken, are put back and leave."""
    queue = BatchQueue(
        DynamicBatching(data.draw(st.integers(1, 3)), 0.0), 1000, FairOrder(FAIRNESS)
    )
    waiting: list[Job] = []
    taken: list[Job] = []
    for _ in range(data.draw(st.integers(1, 40))):
        verb = data.draw(st.sampled_from(["put", "put", "take", "put_back", "leave"]))
        if verb == "put":
            job = job_of(data.draw(KEYS), data.draw(PRIORITIES))
            queue.put(job)
            waiting.append(job)
        elif verb == "take" and waiting:
            batch = queue.next_batch(0.0)
            assert isinstance(batch, list)
            for job in batch:
                waiting.remove(job)
            taken += batch
        elif verb == "put_back" and taken:
            job = taken.pop()
            queue.put_back([job])
            waiting.append(job)
        elif verb == "leave" and waiting:
            waiting.pop(data.draw(st.integers(0, len(waiting) - 1))).response.cancel()
        assert len(queue) == len(waiting)
    while (batch := queue.next_batch(0.0)) is not None:
        assert isinstance(batch, list)
        for job in batch:
            waiting.remove(job)
    assert waiting == []
    assert queue.next_batch(0.0) is None


@given(st.lists(st.tuples(KEYS, PRIORITIES), min_size=1, max_size=60))
def test_nobody_waits_for_more_than_one_turn_of_each_other(names: list[tuple[str, str]]) -> None:
    """Between two jobs of a key, as long as it has more, no other key of its class has more than
    its weight; and no other class between two of a class.
    """
    order = filled(*names)
    rest = [order.popleft() for _ in range(len(names))]
    by_class = [names_of(job) for job in rest]
    for level in (0, 1):
        for start, one in enumerate(by_class):
            since: dict[bytes, int] = {}
            for other in by_class[start + 1 :]:
                if level and other[0] != one[0]:
                    continue
                if other[level] == one[level]:
                    break
                since[other[level]] = since.get(other[level], 0) + 1
            else:
                continue  # it had no more
            weights = TENANTS if level else CLASSES
            assert all(count <= weights.get(name, 1) for name, count in since.items())


def names_of(job: Job) -> tuple[bytes, bytes]:
    headers = {name.lower(): value for name, value in job.request.headers}
    priority = headers.get(b"x-priority", b"")
    return (priority if priority in CLASSES else b"", headers.get(b"x-tenant", b""))


def test_a_light_key_is_not_behind_a_flood() -> None:
    order = FairOrder(FAIRNESS)
    for number in range(500):
        order.append(job_of("flood", "", f"flood{number}"))
    order.append(job_of("light", "", "light"))
    assert served(order).index("light") == 1


def test_a_stream_of_new_keys_starves_nobody() -> None:
    """Each new key joins at the end of the round."""
    order = FairOrder(FAIRNESS)
    order.append(job_of("old", "", "old"))
    order.append(job_of("old", "", "old"))
    seen: deque[str] = deque(maxlen=4)
    for number in range(10):
        order.append(job_of(f"new{number}", "", "new"))
        seen.append(order.popleft().request.id.decode())
        if number == 3:
            assert seen.count("old") == 2


def test_a_fair_queue_answers_and_empties_like_any_other() -> None:
    queue = BatchQueue(DynamicBatching(1, 0.0), 10, FairOrder(FAIRNESS))
    jobs = [job_of("a"), job_of("b"), job_of("a")]
    for job in jobs:
        queue.put(job)
    batch = queue.next_batch(0.0)
    assert batch == [jobs[0]]
    jobs[0].push(chunk(b""))
    assert queue.fail_all(NoWorker("none")) == 2
    assert [job.state for job in jobs] == [JobState.FINISHED, JobState.FAILED, JobState.FAILED]
