"""`RankConnections`: a worker of several processes (torchrun) behind one connection.

Each rank listens on a socket of its own. All of them load the model and get every batch, so that
they can compute it together; where the model is a pipeline (`pp`) batches go to the first, and the
ranks hand on to each other. The first alone answers. A rank that is lost takes the others with it.

Source: contract, wire protocol section 5.
"""

from __future__ import annotations

from ts.protocol.messages import LoadReply, PredictReply
from ts_frontend.workers.connections.base import Buffers, ConnectionOwner, WorkerConnection
from ts_frontend.workers.connections.shared_memory import SharedMemoryLane


class RankConnections:
    """count: of the ranks; each is added by `add`, in their order, before anything is sent.

    is_pipeline: only the first gets batches.
    """

    def __init__(self, owner: ConnectionOwner, count: int, *, is_pipeline: bool) -> None:
        self._owner: ConnectionOwner | None = owner
        self._count = count
        self._is_pipeline = is_pipeline
        self._ranks: list[WorkerConnection] = []
        self._load_replies: list[LoadReply] = []
        self._is_load_sent = False

    def owner_of(self, rank: int) -> ConnectionOwner:
        """Who hears of the connection to this rank."""
        return _Rank(self, rank)

    def add(self, connection: WorkerConnection) -> None:
        if self._owner is None:  # another was lost meanwhile
            connection.close()
        else:
            self._ranks.append(connection)

    # WorkerConnection

    def send(self, buffers: Buffers) -> None:
        for rank in self._receivers():
            rank.send(buffers)

    def send_soon(self, buffers: Buffers) -> None:
        for rank in self._receivers():
            rank.send_soon(buffers)

    def _receivers(self) -> list[WorkerConnection]:
        """The first message loads the model, everywhere."""
        is_load, self._is_load_sent = not self._is_load_sent, True
        return self._ranks if is_load or not self._is_pipeline else self._ranks[:1]

    def use_lane(self, lane: SharedMemoryLane) -> None:
        raise RuntimeError("Shared memory is for one process.")  # and opened for no more

    def close(self) -> None:
        self._owner = None
        ranks, self._ranks = self._ranks, []
        for rank in ranks:
            rank.close()

    # What the ranks say.

    def loaded(self, reply: LoadReply) -> None:
        self._load_replies.append(reply)
        failed = [reply for reply in self._load_replies if reply.code != 200]
        is_over = failed or len(self._load_replies) == self._count
        if is_over and self._owner is not None:
            self._owner.on_load_reply(failed[0] if failed else reply)

    def answered(self, rank: int, reply: PredictReply) -> None:
        if self._owner is None:
            return
        if rank == 0:
            self._owner.on_predict_reply(reply)
        else:
            self.lost(rank, "it answered, which is the first one's to do", True)

    def lost(self, rank: int, reason: str, is_bad_reply: bool) -> None:
        owner = self._owner
        self.close()
        if owner is not None:
            owner.on_connection_lost(f"rank {rank}: {reason}", is_bad_reply)


class _Rank:
    def __init__(self, ranks: RankConnections, rank: int) -> None:
        self._ranks = ranks
        self._rank = rank

    def on_load_reply(self, reply: LoadReply) -> None:
        self._ranks.loaded(reply)

    def on_predict_reply(self, reply: PredictReply) -> None:
        self._ranks.answered(self._rank, reply)

    def on_connection_lost(self, reason: str, is_bad_reply: bool) -> None:
        self._ranks.lost(self._rank, reason, is_bad_reply)
