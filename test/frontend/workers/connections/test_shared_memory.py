"""Both ends of the shared memory in one process: leases, the lane, what a faulty peer may say."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import Callable, Iterator

import pytest
from fakes import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from reply_codec import encode_predict_reply

from ts.protocol.frames import ProtocolError
from ts.protocol.messages import (
    CommandReader,
    Part,
    Prediction,
    PredictRequest,
    ReplyReader,
    encode_load_reply,
    encode_predict,
)
from ts.protocol.shared_memory import BLOCK_BYTES, REFERENCE, REFERENCE_MARK
from ts.transports.shared_memory import CHANNEL_VARIABLE, SharedMemory
from ts_frontend.workers.connections import shared_memory
from ts_frontend.workers.connections.shared_memory import (
    SMALLEST_BYTES,
    SharedBodies,
    SharedMemoryLane,
)

THRESHOLD = 65536
MAX_BYTES = 8 * SMALLEST_BYTES

StartWorker = Callable[[SharedMemoryLane], SharedMemory]


@pytest.fixture
def start_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartWorker]:
    """The worker's end of a lane, as a process that was started with it makes it."""
    channels = []

    def start(lane: SharedMemoryLane) -> SharedMemory:
        _, threshold = lane.variables[CHANNEL_VARIABLE].split()
        inherited = os.dup(lane.descriptor)
        monkeypatch.setenv(CHANNEL_VARIABLE, f"{inherited} {threshold}")
        worker = SharedMemory.from_environment()
        lane.started()
        assert worker is not None
        assert lane.is_understood()
        channels.append(worker._channel)
        return worker

    yield start
    for channel in channels:  # as the end of the process does
        channel.close()


@pytest.fixture
async def bodies() -> Iterator[SharedBodies]:
    bodies = SharedBodies(THRESHOLD, MAX_BYTES)
    yield bodies
    bodies.close()


def open_lane(bodies: SharedBodies) -> SharedMemoryLane:
    lane = bodies.open_lane()
    assert lane is not None
    return lane


def placed(bodies: SharedBodies, body: bytes) -> memoryview:
    view = bodies.place(len(body))
    assert view is not None
    view[:] = body
    return view


def references(message: list[bytes]) -> list[tuple[int, int, int]]:
    """(number, offset, size) of every reference in a message."""
    data = b"".join(message)
    found = []
    mark = REFERENCE_MARK.to_bytes(4, "big", signed=True)
    start = data.find(mark)
    while start >= 0:
        found.append(REFERENCE.unpack_from(data, start)[1:])
        start = data.find(mark, start + REFERENCE.size)
    return found


def request(*sent: bytes | memoryview, number: int = 1) -> PredictRequest:
    return PredictRequest(b"%d" % number, [(b"n", b"v")], [Part(b"body", b"", x) for x in sent])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def maps() -> int:
    with open("/proc/self/maps") as file:
        return sum("torchserve-bodies" in line for line in file)


async def test_a_place_is_free_again_when_its_last_view_is_gone(bodies: SharedBodies) -> None:
    first = bodies.place(SMALLEST_BYTES)
    part = first[10:20]
    other = bodies.place(SMALLEST_BYTES)
    assert other.obj is not first.obj
    del first
    third = bodies.place(5)  # the slice still needs the first
    assert third.obj.owner not in (part.obj.owner, other.obj.owner)
    memory = part.obj.owner
    del part
    assert bodies.place(5).obj.owner is memory


async def test_no_more_is_reserved_than_allowed(bodies: SharedBodies) -> None:
    kept = [bodies.place(SMALLEST_BYTES) for _ in range(8)]
    assert None not in kept
    assert bodies.place(1) is None
    assert bodies.reserved_bytes == MAX_BYTES
    del kept[0]
    assert bodies.place(1) is not None
    assert bodies.place(MAX_BYTES + 1) is None


async def test_free_memory_of_another_size_makes_room(bodies: SharedBodies) -> None:
    small = [bodies.place(SMALLEST_BYTES) for _ in range(8)]
    del small
    large = bodies.place(MAX_BYTES)
    assert len(large) == MAX_BYTES
    assert bodies.reserved_bytes == MAX_BYTES


async def test_memory_that_another_thread_is_just_letting_go_of_can_be_dropped(
    bodies: SharedBodies,
) -> None:
    view = bodies.place(1)
    still_held = memoryview(view.obj.owner.memory)  # as by a lease that has yet to be taken apart
    del view
    bodies.close()
    assert bodies.reserved_bytes == 0
    del still_held


async def test_a_body_in_its_place_is_read_by_the_worker_as_it_is(
    bodies: SharedBodies, start_worker: StartWorker
) -> None:
    lane = open_lane(bodies)
    worker = start_worker(lane)
    body = random.Random(1).randbytes(300_000)
    view = placed(bodies, body)
    message = lane.shorten(encode_predict([request(view, view[100:200_000])]))
    ((number, offset, size), (other, part_offset, part_size)) = references(message)
    assert (offset, size) == (0, len(body))
    assert (other, part_offset, part_size) == (number, 100, 199_900)
    assert worker.take(number, offset, size) == body
    assert worker.take(other, part_offset, part_size) == body[100:200_000]
    lane.close()


async def test_a_worker_alone_uses_the_same_memory_again(
    bodies: SharedBodies, start_worker: StartWorker
) -> None:
    lane = open_lane(bodies)
    worker = start_worker(lane)
    numbers = set()
    for _ in range(20):
        view = placed(bodies, b"x" * THRESHOLD)
        (reference,) = references(lane.shorten(encode_predict([request(view)])))
        del view
        worker.take(*reference)
        numbers.add(reference[0])
    assert len(numbers) == 1
    lane.close()


async def test_no_worker_is_shown_what_another_may_get(
    bodies: SharedBodies, start_worker: StartWorker
) -> None:
    lanes = [open_lane(bodies), open_lane(bodies)]
    workers = [start_worker(lane) for lane in lanes]
    seen: list[set[int]] = [set(), set()]
    for turn in range(20):
        view = placed(bodies, bytes([turn]) * THRESHOLD)
        assert view.obj.owner.seen_by is None
        index = turn // 3 % 2
        (reference,) = references(lanes[index].shorten(encode_predict([request(view)])))
        del view
        assert workers[index].take(*reference) == bytes([turn]) * THRESHOLD
        seen[index].add(reference[0])
    assert not seen[0] & seen[1]
    assert bodies.reserved_bytes <= 6 * SMALLEST_BYTES
    for lane in lanes:
        lane.close()


async def test_a_request_that_was_shown_to_a_dead_worker_can_be_sent_to_the_next(
    bodies: SharedBodies, start_worker: StartWorker
) -> None:
    body = b"again" * 20_000
    view = placed(bodies, body)
    lane = open_lane(bodies)
    start_worker(lane)
    lane.shorten(encode_predict([request(view)]))
    lane.close()
    lane = open_lane(bodies)
    worker = start_worker(lane)
    (reference,) = references(lane.shorten(encode_predict([request(view)])))
    assert worker.take(*reference) == body
    lane.close()


async def test_without_memory_the_body_goes_as_it_is(
    bodies: SharedBodies, start_worker: StartWorker
) -> None:
    lane = open_lane(bodies)
    start_worker(lane)
    kept = [bodies.place(SMALLEST_BYTES) for _ in range(8)]
    message = encode_predict([request(b"z" * THRESHOLD)])
    assert b"".join(lane.shorten(message)) == b"".join(message)
    del kept
    assert len(b"".join(lane.shorten(message))) < THRESHOLD
    lane.close()


async def test_an_arena_that_clients_hold_full_lets_answers_through_the_socket(
    bodies: SharedBodies, start_worker: StartWorker
) -> None:
    lane = open_lane(bodies)
    worker = start_worker(lane)
    body = b"y" * SMALLEST_BYTES
    reply = encode_predict_reply(200, "ok", [Prediction(b"id", b"", 200, b"", [], body)])
    slow = []
    while found := references(worker.shorten(list(reply))):
        slow.append(lane.body(*found[0]))
    assert len(slow) == 7  # the head takes the room of one
    assert b"".join(worker.shorten(list(reply))) == b"".join(reply)
    assert bytes(slow.pop()) == body
    assert references(worker.shorten(list(reply)))
    lane.close()


async def test_what_a_worker_makes_up_is_refused(
    bodies: SharedBodies, start_worker: StartWorker
) -> None:
    lane = open_lane(bodies)
    start_worker(lane)
    for number, offset, size in [
        (0, 0, 10),
        (0, BLOCK_BYTES, 2**31 - 1),
        (0, -BLOCK_BYTES, 10),
        (1, BLOCK_BYTES, 10),
        (-5, BLOCK_BYTES, 10),
    ]:
        reader = ReplyReader(2**31 - 1)
        reader.shared_body = lane.body
        predictions = [Prediction(b"id", b"", 200, b"", [], b"")]
        reply = b"".join(encode_predict_reply(200, "ok", predictions))
        reader.feed(reply[:-8] + REFERENCE.pack(REFERENCE_MARK, number, offset, size) + reply[-4:])
        with pytest.raises(ProtocolError):
            reader.next_predict()
    lane.close()


async def test_a_count_that_a_worker_makes_up_frees_only_its_own(
    bodies: SharedBodies, start_worker: StartWorker
) -> None:
    lane = open_lane(bodies)
    worker = start_worker(lane)
    worker._arena.count_taken(2**64 - 1)
    lane.shorten(encode_predict([request(b"1" * THRESHOLD)]))
    lane.settle()
    (reference,) = references(lane.shorten(encode_predict([request(b"2" * THRESHOLD)])))
    assert worker.take(*reference) == b"2" * THRESHOLD
    lane.close()


async def test_a_worker_of_torchserve_says_nothing(bodies: SharedBodies) -> None:
    lane = open_lane(bodies)
    assert not lane.is_understood()
    lane.started()
    assert not lane.is_understood()
    lane.close()


@pytest.mark.parametrize("offer", ["", "abc 1", "999999 65536", "0 65536", "7"])
def test_an_offer_that_cannot_be_used_is_none(monkeypatch: pytest.MonkeyPatch, offer: str) -> None:
    monkeypatch.setenv(CHANNEL_VARIABLE, offer)
    assert SharedMemory.from_environment() is None
    assert CHANNEL_VARIABLE not in os.environ


def test_a_reference_is_an_impossible_length_for_who_has_no_shared_memory() -> None:
    body = b"b" * THRESHOLD
    message = encode_predict([request(body)])
    message[0] = message[0][:-4]
    message[1] = REFERENCE.pack(REFERENCE_MARK, 1, 0, len(body))
    reader = CommandReader()
    reader.feed(b"".join(message))
    with pytest.raises(ProtocolError, match="impossible length -2"):
        reader.next()


async def test_idle_memory_goes_back_to_the_system(
    bodies: SharedBodies, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "IDLE_S", 0.01)
    lane = open_lane(bodies)
    worker = start_worker(lane)
    view = placed(bodies, b"k" * THRESHOLD)
    (reference,) = references(lane.shorten(encode_predict([request(view)])))
    worker.take(*reference)
    await asyncio.sleep(0)
    del view
    await wait_until(lambda: bodies.reserved_bytes == 0)
    view = placed(bodies, b"l" * THRESHOLD)
    (reference,) = references(lane.shorten(encode_predict([request(view)])))
    assert worker.take(*reference) == b"l" * THRESHOLD
    assert len(worker._memories) == 1  # and the worker has let go of the first, too
    lane.close()


async def test_nothing_is_left_of_a_lane(start_worker: StartWorker) -> None:
    gc.collect()
    before = descriptors(), maps()
    bodies = SharedBodies(THRESHOLD, MAX_BYTES)
    for _ in range(5):
        lane = open_lane(bodies)
        worker = start_worker(lane)
        view = placed(bodies, b"m" * THRESHOLD)
        lane.shorten(encode_predict([request(view, b"n" * THRESHOLD)]))
        reply = [Prediction(b"id", b"", 200, b"", [], b"o" * THRESHOLD)]
        ((number, offset, size),) = references(
            worker.shorten(encode_predict_reply(200, "ok", reply))
        )
        answer = lane.body(number, offset, size)
        lane.close()  # died with all of it under way
        assert bytes(answer) == b"o" * THRESHOLD
        worker._channel.close()
        del view, answer, worker, lane
    bodies.close()
    gc.collect()
    assert (descriptors(), maps()) == before


sizes = st.lists(
    st.one_of(st.integers(0, 200_000), st.integers(900_000, 2_500_000)), min_size=1, max_size=6
)


@settings(max_examples=25, deadline=None)
@given(sizes, st.lists(st.booleans(), min_size=6, max_size=6), st.integers(1, 2**20))
def test_any_mix_of_bodies_arrives_as_it_was(
    sizes: list[int], in_place: list[bool], split: int
) -> None:
    async def check() -> None:
        bodies = SharedBodies(THRESHOLD, MAX_BYTES)
        lane = open_lane(bodies)
        inherited = os.dup(lane.descriptor)
        os.environ[CHANNEL_VARIABLE] = f"{inherited} {THRESHOLD}"
        worker = SharedMemory.from_environment()
        assert worker is not None
        commands = CommandReader(shared_body=worker.take)
        replies = ReplyReader(2**31 - 1)
        replies.shared_body = lane.body
        replies.feed(encode_load_reply(200, "loaded"))
        replies.next_load()
        source = random.Random(split)
        for _ in range(2):
            sent = [source.randbytes(size) for size in sizes]
            batch = []
            for number, (body, is_placed) in enumerate(zip(sent, in_place, strict=False)):
                view = bodies.place(len(body)) if is_placed and body else None
                if view is not None:
                    view[:] = body
                batch.append(request(body if view is None else view, number=number))
            data = b"".join(lane.shorten(encode_predict(batch)))
            for start in range(0, len(data), split):
                commands.feed(data[start : start + split])
            command = commands.next()
            assert isinstance(command, list)
            got = [bytes(each.parts[0].body) for each in command]
            assert got == sent
            answers = [
                Prediction(each.id, b"", 200, b"", [], each.parts[0].body) for each in command
            ]
            data = b"".join(worker.shorten(encode_predict_reply(200, "ok", answers)))
            for start in range(0, len(data), split):
                replies.feed(data[start : start + split])
            reply = replies.next_predict()
            assert reply is not None
            assert [bytes(each.body) for each in reply.predictions] == sent
            del reply, batch, view
        lane.close()
        bodies.close()
        worker._channel.close()

    asyncio.run(check())
