"""Messages that were damaged on their way: both readers end the same way however the bytes come."""

from __future__ import annotations

from fuzzing import fuzzed, outcome, pieces_of
from hypothesis import given
from hypothesis import strategies as st
from reply_codec import encode_predict_reply

from ts.protocol.messages import (
    CommandReader,
    LoadModel,
    Part,
    Prediction,
    PredictRequest,
    ReplyReader,
    encode_load,
    encode_predict,
)

LIMIT = 1 << 20

COMMANDS = encode_load(LoadModel("m", "/dir", 4, "handler.py", 0, "", True)) + b"".join(
    bytes(piece)
    for piece in encode_predict(
        [
            PredictRequest(b"id-1", [(b"name", b"value")], [Part(b"body", b"text/csv", b"hello")]),
            PredictRequest(b"id-2", [], [Part(b"data", b"", b"x" * 300), Part(b"", b"", b"")]),
        ]
    )
)
REPLIES = b"".join(
    bytes(piece)
    for answer in (
        (
            200,
            "Prediction success",
            [Prediction(b"id-1", b"a/b", 200, b"", [(b"n", b"v")], b"yes")],
        ),
        (507, "Out of resources", []),
    )
    for piece in encode_predict_reply(*answer)
)
FLIPS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4)
CUTS = st.lists(st.integers(1, 80), max_size=20)


def damaged(data: bytes, flips, lost: int) -> bytes:
    changed = bytearray(data)
    for position, value in flips:
        changed[position % len(changed)] = value
    return bytes(changed[: len(changed) - lost])


@fuzzed
@given(FLIPS, st.integers(0, 20), CUTS)
def test_damaged_commands(flips, lost, cuts):
    data = damaged(COMMANDS, flips, lost)
    whole, split = CommandReader(), CommandReader()
    expected = outcome(whole, whole.next, pieces_of(data, []))
    assert outcome(split, split.next, pieces_of(data, cuts)) == expected


@fuzzed
@given(FLIPS, st.integers(0, 20), CUTS)
def test_damaged_replies(flips, lost, cuts):
    data = damaged(REPLIES, flips, lost)
    whole, split = ReplyReader(LIMIT), ReplyReader(LIMIT)
    expected = outcome(whole, whole.next_predict, pieces_of(data, []))
    assert outcome(split, split.next_predict, pieces_of(data, cuts)) == expected
