"""The codec in both directions: recorded bytes, any split, and bytes that are no message."""

from __future__ import annotations

import contextlib
import itertools
import sys
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reply_codec import encode_predict_reply

from ts.protocol import messages
from ts.protocol.frames import encode_field, encode_int
from ts.protocol.header_block import HeaderBlock
from ts.protocol.messages import (
    LARGE_BODY_BYTES,
    PING,
    PONG,
    Cancel,
    CommandReader,
    LoadModel,
    LoadReply,
    Part,
    Ping,
    Prediction,
    PredictReply,
    PredictRequest,
    ProtocolError,
    ReplyReader,
    encode_cancel,
    encode_load,
    encode_load_reply,
    encode_predict,
    is_pong,
)

# Recorded from TorchServe 0.12.
LOAD_BYTES = bytes.fromhex("4C 00000001 6D 00000002 2F64 00000001 00000001 68 FFFFFFFF 00000000 01")
LOAD = LoadModel("m", "/d", 1, "h", None, "", True)
PREDICT_BYTES = bytes.fromhex(
    "49 00000002 6964 00000001 61 00000001 62 FFFFFFFF"
    "00000004 626F6479 00000000 00000001 31 FFFFFFFF FFFFFFFF"
)
PREDICT = [PredictRequest(b"id", [(b"a", b"b")], [Part(b"body", b"", b"1")])]
REPLY_BYTES = (
    bytes.fromhex("000000C8 00000012")
    + b"Prediction success"
    + bytes.fromhex("00000002 6964 00000000 000000C8 00000000 00000000 00000001 31 FFFFFFFF")
)
REPLY = PredictReply(200, "Prediction success", [Prediction(b"id", b"", 200, b"", [], b"1")])

LIMIT = 1 << 20

# Sizes around the places where the codec changes its way of handling a body.
body_sizes = st.one_of(
    st.integers(0, 40),
    st.sampled_from(
        [1023, 1024, LARGE_BODY_BYTES - 1, LARGE_BODY_BYTES, messages.DIRECT_BODY_BYTES + 3]
    ),
)
bodies = body_sizes.map(lambda size: bytes(range(256)) * (size // 256) + bytes(range(size % 256)))
names = st.binary(max_size=12)
headers = st.lists(st.tuples(names, names), max_size=4)
parts = st.builds(Part, names, names, bodies)
requests = st.builds(PredictRequest, names, headers, st.lists(parts, max_size=3))
batches = st.lists(requests, max_size=3)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
loads = st.builds(
    LoadModel,
    texts,
    texts,
    st.integers(1, 2**31 - 1),
    texts,
    st.none() | st.integers(0, 15),
    texts,
    st.booleans(),
)
statuses = st.integers(-(2**31), 2**31 - 1)
# A handler that sets nothing gives the answers that the reader has a short way for.
plain_predictions = st.builds(
    Prediction, names, st.just(b""), st.just(200), st.just(b""), st.just([]), bodies
)
predictions = st.builds(Prediction, names, names, statuses, names, headers, bodies)
replies = st.builds(
    PredictReply,
    st.sampled_from([200, 503]) | statuses,
    st.just("Prediction success") | texts,
    st.lists(predictions | plain_predictions, max_size=3),
)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at these places, taken modulo its length."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


def as_bytes(message):
    """The message with every body as bytes, so that it can be compared."""
    if isinstance(message, PredictReply):
        return message._replace(
            predictions=[item._replace(body=bytes(item.body)) for item in message.predictions]
        )
    if isinstance(message, list):
        return [
            request._replace(
                headers=list(request.headers),
                parts=[part._replace(body=bytes(part.body)) for part in request.parts],
            )
            for request in message
        ]
    return message


def read_all(reader, next_message, pieces):
    found = []
    for piece in pieces:
        reader.feed(piece)
        while (message := next_message()) is not None:
            found.append(as_bytes(message))
    return found


def encode_command(message) -> bytes:
    if isinstance(message, LoadModel):
        return encode_load(message)
    return b"".join(encode_predict(message))


def test_recorded_load():
    assert encode_load(LOAD) == LOAD_BYTES
    reader = CommandReader()
    reader.feed(LOAD_BYTES)
    assert reader.next() == LOAD
    assert reader.next() is None


def test_recorded_predict():
    assert b"".join(encode_predict(PREDICT)) == PREDICT_BYTES
    reader = CommandReader()
    reader.feed(PREDICT_BYTES)
    assert reader.next() == PREDICT


@given(batches, st.integers(0, 2000))
def test_headers_that_are_shared_are_the_same_bytes(batch, size):
    long = [(b"x" * size, b"y" * (2000 - size))]
    batch = [request._replace(headers=[*request.headers, *long]) for request in batch]
    shared = [request._replace(headers=HeaderBlock(request.headers)) for request in batch]
    assert b"".join(encode_predict(shared)) == b"".join(encode_predict(batch))
    for request, other in zip(shared, batch, strict=True):
        assert list(request.headers) == other.headers


def test_recorded_reply():
    assert b"".join(encode_predict_reply(*REPLY)) == REPLY_BYTES
    reader = ReplyReader(LIMIT)
    reader.feed(REPLY_BYTES)
    assert reader.next_predict() == REPLY
    assert reader.next_predict() is None


def test_recorded_load_reply():
    data = bytes.fromhex("000000C8 0000000E") + b"loaded model m" + bytes.fromhex("FFFFFFFF")
    assert encode_load_reply(200, "loaded model m") == data
    reader = ReplyReader(LIMIT)
    reader.feed(data)
    assert reader.next_load() == LoadReply(200, "loaded model m")


def test_empty_batch_is_command_and_end():
    assert b"".join(encode_predict([])) == b"I\xff\xff\xff\xff"
    reader = CommandReader()
    reader.feed(b"I\xff\xff\xff\xff")
    assert reader.next() == []


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_byte_by_byte(step):
    commands = LOAD_BYTES + PREDICT_BYTES + b"I\xff\xff\xff\xff"
    reader = CommandReader()
    pieces = [commands[i : i + step] for i in range(0, len(commands), step)]
    assert read_all(reader, reader.next, pieces) == [LOAD, PREDICT, []]

    data = REPLY_BYTES * 2
    replies_reader = ReplyReader(LIMIT)
    pieces = [data[i : i + step] for i in range(0, len(data), step)]
    assert read_all(replies_reader, replies_reader.next_predict, pieces) == [REPLY, REPLY]


@given(st.lists(loads | batches, min_size=1, max_size=3), st.lists(st.integers(0, 2**20)))
def test_commands_survive_any_split(commands, cuts):
    data = b"".join(encode_command(command) for command in commands)
    reader = CommandReader()
    assert read_all(reader, reader.next, split(data, cuts)) == [as_bytes(c) for c in commands]


few_headers = st.lists(
    st.tuples(st.sampled_from([b"", b"a", b"bc"]), st.sampled_from([b"", b"d"])), max_size=2
)
similar_requests = st.builds(PredictRequest, st.just(b"id"), few_headers, st.just([]))


@given(
    st.lists(st.lists(similar_requests, max_size=4), min_size=1, max_size=6),
    st.lists(st.integers(0, 2**20)),
)
def test_headers_like_the_last_ones_are_read_like_any(commands, cuts):
    data = b"".join(encode_command(command) for command in commands)
    reader = CommandReader()
    assert read_all(reader, reader.next, split(data, cuts)) == [as_bytes(c) for c in commands]


def test_equal_headers_are_read_once():
    request = PredictRequest(b"id", [(b"a", b"b")], [])
    reader = CommandReader()
    reader.feed(b"".join(encode_predict([request, request._replace(id=b"other")])))
    first, second = reader.next()
    assert second.headers is first.headers


@given(st.lists(replies, min_size=1, max_size=3), st.lists(st.integers(0, 2**20)))
def test_replies_survive_any_split(answers, cuts):
    data = b"".join(b"".join(encode_predict_reply(*answer)) for answer in answers)
    reader = ReplyReader(LIMIT)
    assert read_all(reader, reader.next_predict, split(data, cuts)) == answers


@given(statuses, texts, st.lists(st.integers(0, 100)), replies)
def test_load_reply_then_predict_reply(code, message, cuts, answer):
    data = encode_load_reply(code, message)
    reader = ReplyReader(LIMIT)
    found = None
    for piece in split(data, cuts):
        reader.feed(piece)
        found = reader.next_load()
    assert found == LoadReply(code, message)
    reader.feed(b"".join(encode_predict_reply(*answer)))
    assert as_bytes(reader.next_predict()) == answer


def test_reply_already_fed_together_with_the_load_reply():
    reader = ReplyReader(LIMIT)
    reader.feed(encode_load_reply(200, "x") + REPLY_BYTES)
    assert reader.next_load() == LoadReply(200, "x")
    assert reader.next_predict() == REPLY


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bodies_of_any_buffer_type(kind):
    for size in (3, LARGE_BODY_BYTES):
        batch = [PredictRequest(b"i", [], [Part(b"body", b"", kind(b"x" * size))])]
        reader = CommandReader()
        reader.feed(b"".join(encode_predict(batch)))
        assert as_bytes(reader.next())[0].parts[0].body == b"x" * size


def test_large_bodies_are_not_copied():
    body = b"x" * LARGE_BODY_BYTES
    batch = [PredictRequest(b"i", [], [Part(b"body", b"", body)])]
    assert any(item is body for item in encode_predict(batch))
    assert any(
        item is body
        for item in encode_predict_reply(200, "m", [Prediction(b"i", b"", 200, b"", [], body)])
    )
    small = [PredictRequest(b"i", [], [Part(b"body", b"", body[:-1])])]
    assert len(encode_predict(small)) == 1


def test_reply_body_is_a_view_of_what_was_fed():
    body = b"x" * LARGE_BODY_BYTES
    data = b"".join(encode_predict_reply(200, "m", [Prediction(b"i", b"", 200, b"", [], body)]))
    reader = ReplyReader(LIMIT)
    reader.feed(data)
    reply = reader.next_predict()
    assert isinstance(reply.predictions[0].body, memoryview)
    assert reply.predictions[0].body.obj is data


def test_worker_gets_bytearrays_of_its_own():
    reader = CommandReader()
    reader.feed(PREDICT_BYTES)
    (request,) = reader.next()
    assert type(request.parts[0].body) is bytearray
    request.parts[0].body.extend(b"free to change")


@pytest.mark.parametrize("read_bytes", [1000, 1 << 16, 1 << 20, 1 << 24])
def test_large_body_is_read_in_place(read_bytes):
    body = bytes(range(256)) * (40 << 10)  # 10 MiB, more than the place may run ahead
    batch = [PredictRequest(b"i", [], [Part(b"a", b"", body), Part(b"b", b"", b"after")])]
    stream = memoryview(b"".join(encode_predict(batch)) + PREDICT_BYTES)
    reader = CommandReader()
    found = []
    in_place = 0
    while len(stream):
        space = reader.body_space
        if space is None:
            piece = stream[:read_bytes]
            reader.feed(piece)
            count = len(piece)
        else:
            count = min(len(space), len(stream), read_bytes)
            space[:count] = stream[:count]
            del space
            reader.body_filled(count)
            in_place += count
        stream = stream[count:]
        while (message := reader.next()) is not None:
            found.append(as_bytes(message))
    assert found == [as_bytes(batch), PREDICT]
    if read_bytes <= 1 << 20:
        assert in_place > len(body) * 3 // 4


HUGE = encode_int(LIMIT + 1)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (encode_int(200) + encode_int(-1), "reply message has the impossible length -1"),
        (encode_int(200) + HUGE, "reply message of 1048577 bytes is larger than the limit"),
        (encode_int(200) + encode_field(b"m") + HUGE, "request id of 1048577"),
        (encode_int(200) + encode_field(b"m") + encode_int(-2), "request id has .* -2"),
        (
            encode_int(200) + encode_field(b"m") + encode_field(b"i") + HUGE,
            "content type of 1048577",
        ),
        (
            encode_int(200)
            + encode_field(b"m")
            + encode_field(b"i")
            + encode_field(b"")
            + encode_int(200)
            + encode_int(-1),
            "reason phrase has .* -1",
        ),
        (
            encode_int(200)
            + encode_field(b"m")
            + encode_field(b"i")
            + encode_field(b"")
            + encode_int(200)
            + encode_field(b"")
            + encode_int(-1),
            "header count is -1",
        ),
        (
            encode_int(200)
            + encode_field(b"m")
            + encode_field(b"i")
            + encode_field(b"")
            + encode_int(200)
            + encode_field(b"")
            + encode_int(1)
            + HUGE,
            "header name of",
        ),
        (
            encode_int(200)
            + encode_field(b"m")
            + encode_field(b"i")
            + encode_field(b"")
            + encode_int(200)
            + encode_field(b"")
            + encode_int(1)
            + encode_field(b"n")
            + HUGE,
            "header value of",
        ),
        (
            encode_int(200)
            + encode_field(b"m")
            + encode_field(b"i")
            + encode_field(b"")
            + encode_int(200)
            + encode_field(b"")
            + encode_int(0)
            + HUGE,
            "response body of",
        ),
    ],
)
def test_reply_with_an_impossible_length(data, complaint):
    reader = ReplyReader(LIMIT)
    reader.feed(data + b"\x7f\xff\xff\xff" * 4)
    with pytest.raises(ProtocolError, match=complaint):
        reader.next_predict()
    # And it stays so: nothing after the fault may be taken for a message.
    reader.feed(REPLY_BYTES)
    with pytest.raises(ProtocolError, match=complaint):
        reader.next_predict()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"X", "Invalid command: b'X'"),
        (b"L" + encode_int(-1), "model name has .* -1"),
        (b"L" + HUGE, "model name of"),
        (b"L" + encode_field(b"m") + HUGE, "model directory of"),
        (b"L" + encode_field(b"\xff"), "model name is not UTF-8"),
        (b"I" + encode_int(-5), "request id has .* -5"),
        (b"I" + HUGE, "request id of"),
        (b"I" + encode_field(b"i") + HUGE, "header name of"),
        (b"I" + encode_field(b"i") + encode_field(b"n") + encode_int(-1), "header value has"),
        (b"I" + encode_field(b"i") + encode_int(-1) + encode_int(-3), "parameter name has"),
        (
            b"I" + encode_field(b"i") + encode_int(-1) + encode_field(b"n") + encode_int(-1),
            "content type has",
        ),
        (
            b"I"
            + encode_field(b"i")
            + encode_int(-1)
            + encode_field(b"n")
            + encode_field(b"")
            + HUGE,
            "parameter value of",
        ),
    ],
)
def test_command_with_an_impossible_length(data, complaint):
    reader = CommandReader(LIMIT)
    reader.feed(data + b"\0" * 16)
    with pytest.raises(ProtocolError, match=complaint):
        reader.next()
    reader.feed(LOAD_BYTES)
    with pytest.raises(ProtocolError, match=complaint):
        reader.next()


def test_load_reply_without_its_end():
    reader = ReplyReader(LIMIT)
    reader.feed(encode_int(200) + encode_field(b"m") + encode_int(7))
    with pytest.raises(ProtocolError, match="ends with 7"):
        reader.next_load()


def test_code_200_with_another_message():
    answer = PredictReply(200, "Prediction succeeds", [])
    reader = ReplyReader(LIMIT)
    reader.feed(b"".join(encode_predict_reply(*answer)))
    assert reader.next_predict() == answer


@settings(max_examples=300)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200)), st.booleans())
@example(
    b"I"
    + encode_field(b"i")
    + encode_int(-1)
    + encode_field(b"b")
    + encode_field(b"")
    + encode_int(2**31 - 1)
    + b"x",
    [],
    True,
)
def test_random_bytes_end_and_cost_nothing(data, cuts, starts_like_a_batch):
    pieces = split(data, cuts)
    tracemalloc.start()
    try:
        for reader, step in (
            (command_reader := CommandReader(), command_reader.next),
            (predict_reader := ReplyReader(2**31 - 1), predict_reader.next_predict),
            (load_reader := ReplyReader(2**31 - 1), load_reader.next_load),
        ):
            with contextlib.suppress(ProtocolError):
                if starts_like_a_batch and reader is command_reader:
                    reader.feed(b"I")
                read_all(reader, step, pieces)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The place of a large body may run ahead of its bytes, but only so far.
    assert peak < 3 * messages.DIRECT_AHEAD_BYTES


def test_reader_lets_go_of_what_it_has_read():
    """A reader that waits for the next message keeps nothing of the last one alive."""
    data = b"".join(
        encode_predict_reply(200, "m", [Prediction(b"i", b"", 200, b"", [], b"x" * (1 << 20))])
    )
    alone = sys.getrefcount(data)
    reader = ReplyReader(2 * LIMIT)
    reader.feed(data)
    reply = reader.next_predict()
    assert sys.getrefcount(data) > alone
    del reply
    assert reader.next_predict() is None
    assert sys.getrefcount(data) == alone


def test_recorded_controls():
    assert encode_cancel(b"id") == b"C\x00\x00\x00\x02id"
    assert PING == b"P"
    assert PONG == b"\x00\x00\x00\xc8\x00\x00\x00\x04pong\xff\xff\xff\xff"
    pieces = [bytes((byte,)) for byte in encode_cancel(b"id") + PING + LOAD_BYTES]
    reader = CommandReader()
    found = []
    for piece in pieces:
        reader.feed(piece)
        while (command := reader.next()) is not None:
            found.append(command)
    assert found == [Cancel(b"id"), Ping.PING, LOAD]


def test_a_pong_is_told_from_an_answer():
    reader = ReplyReader(LIMIT)
    reader.feed(PONG)
    assert is_pong(reader.next_predict())
    assert not is_pong(PredictReply(200, "Prediction success", []))


def test_a_cancel_with_an_impossible_length():
    reader = CommandReader(LIMIT)
    reader.feed(b"C" + (LIMIT + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="request id"):
        reader.next()
