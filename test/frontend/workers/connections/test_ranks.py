"""A worker of several ranks behind one connection: who gets what, and who is heard."""

from __future__ import annotations

from typing import Any

import pytest

from ts.protocol.messages import LoadReply, PredictReply
from ts_frontend.workers.connections.ranks import RankConnections

LOADED = LoadReply(200, "loaded")
ANSWER = PredictReply(200, "", [])


class Owner:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_load_reply(self, reply: LoadReply) -> None:
        self.heard.append(reply)

    def on_predict_reply(self, reply: PredictReply) -> None:
        self.heard.append(reply)

    def on_connection_lost(self, reason: str, is_bad_reply: bool) -> None:
        self.heard.append((reason, is_bad_reply))


class Rank:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_closed = False

    def send(self, buffers: Any) -> None:
        self.sent += buffers

    def send_soon(self, buffers: Any) -> None:
        self.sent += buffers

    def use_lane(self, lane: Any) -> None:
        raise AssertionError

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def owner() -> Owner:
    return Owner()


def joined(owner: Owner, count: int = 3, **options: Any) -> tuple[RankConnections, list[Rank]]:
    connections = RankConnections(owner, count, **{"is_pipeline": False, **options})
    ranks = [Rank() for _ in range(count)]
    for rank in ranks:
        connections.add(rank)
    return connections, ranks


@pytest.mark.parametrize(("is_pipeline", "batches"), [(False, [b"batch", b"ahead"]), (True, [])])
def test_all_load_and_a_pipelines_first_rank_works_alone(
    owner: Owner, is_pipeline: bool, batches: list[bytes]
) -> None:
    connections, ranks = joined(owner, is_pipeline=is_pipeline)
    connections.send([b"load"])
    connections.send([b"batch"])
    connections.send_soon([b"ahead"])
    assert ranks[0].sent == [b"load", b"batch", b"ahead"]
    assert [rank.sent for rank in ranks[1:]] == [[b"load", *batches]] * 2


def test_the_model_is_loaded_when_every_rank_says_so(owner: Owner) -> None:
    connections, _ = joined(owner)
    for rank in (2, 0):
        connections.owner_of(rank).on_load_reply(LOADED)
        assert owner.heard == []
    connections.owner_of(1).on_load_reply(LOADED)
    assert owner.heard == [LOADED]


def test_one_rank_that_cannot_load_is_enough(owner: Owner) -> None:
    connections, _ = joined(owner)
    connections.owner_of(0).on_load_reply(LOADED)
    refused = LoadReply(507, "System out of memory")
    connections.owner_of(2).on_load_reply(refused)
    assert owner.heard == [refused]


def test_the_first_rank_answers(owner: Owner) -> None:
    connections, ranks = joined(owner)
    connections.owner_of(0).on_predict_reply(ANSWER)
    assert owner.heard == [ANSWER]
    connections.owner_of(1).on_predict_reply(ANSWER)
    assert owner.heard[1:] == [("rank 1: it answered, which is the first one's to do", True)]
    assert all(rank.is_closed for rank in ranks)


def test_a_rank_that_is_lost_takes_the_others_with_it_once(owner: Owner) -> None:
    connections, ranks = joined(owner)
    connections.owner_of(1).on_connection_lost("gone", False)
    connections.owner_of(2).on_connection_lost("gone", False)
    connections.owner_of(0).on_predict_reply(ANSWER)
    connections.owner_of(0).on_load_reply(LOADED)
    assert owner.heard == [("rank 1: gone", False)]
    assert all(rank.is_closed for rank in ranks)


def test_a_rank_that_is_lost_before_all_are_there(owner: Owner) -> None:
    connections = RankConnections(owner, 2, is_pipeline=False)
    connections.add(Rank())
    connections.owner_of(0).on_connection_lost("gone", False)
    late = Rank()
    connections.add(late)
    assert late.is_closed
    connections.send([b"load"])
    assert late.sent == []


def test_nobody_is_told_of_a_goodbye(owner: Owner) -> None:
    connections, ranks = joined(owner)
    connections.close()
    connections.owner_of(0).on_connection_lost("closed", False)
    assert owner.heard == []
    assert all(rank.is_closed for rank in ranks)
