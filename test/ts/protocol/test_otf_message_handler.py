"""The historical names of the codec, with connections that hand out one field per call."""

from __future__ import annotations

import io
import json

import pytest

from ts.context import Context, RequestProcessor
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.protocol import otf_message_handler as otf
from ts.protocol.frames import encode_field, encode_int
from ts.protocol.messages import ReplyReader


class FieldConnection:
    """Gives one prepared piece for each `recv`, and fails when asked for another."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)
        self.asked: list[int] = []
        self.sent = b""

    def recv(self, size: int) -> bytes:
        self.asked.append(size)
        return self._pieces.pop(0)

    def sendall(self, data) -> None:
        self.sent += bytes(data)

    @property
    def is_used_up(self) -> bool:
        return not self._pieces


def field(data: bytes) -> tuple[bytes, bytes]:
    return encode_int(len(data)), data


END = encode_int(-1)


def test_load_reads_each_field_once():
    conn = FieldConnection(
        b"L", *field(b"m"), *field(b"/dir"), encode_int(2), *field(b"handler.py"),
        encode_int(1), *field(b"json"), b"\x01",
    )  # fmt: skip
    assert otf.retrieve_msg(conn) == (
        b"L",
        {
            "modelName": b"m",
            "modelPath": b"/dir",
            "batchSize": 2,
            "handler": b"handler.py",
            "gpu": 1,
            "envelope": b"json",
            "limitMaxImagePixels": True,
        },
    )
    assert conn.is_used_up
    assert conn.asked == [1, 4, 1, 4, 4, 4, 4, 10, 4, 4, 4, 1]


def test_load_without_gpu_and_envelope():
    conn = FieldConnection(
        b"L", *field(b"m"), *field(b"/d"), encode_int(1), *field(b"h"), END, encode_int(0), b"\x00"
    )
    _, message = otf.retrieve_msg(conn)
    assert "gpu" not in message
    assert message["envelope"] == b""
    assert message["limitMaxImagePixels"] is False
    assert type(message["modelName"]) is bytearray


def test_predict_gives_dicts_and_decoded_values():
    conn = FieldConnection(
        b"I", *field(b"id"), *field(b"a"), *field(b"b"), END,
        *field(b"body"), *field(b"application/json"), *field(b'{"x": 1}'),
        *field(b"text"), *field(b"text/plain"), *field(b"t"),
        *field(b"raw"), encode_int(0), *field(b"r"),
        END, END,
    )  # fmt: skip
    command, (request,) = otf.retrieve_msg(conn)
    assert command == b"I"
    assert request["requestId"] == b"id"
    assert request["headers"] == [{"name": b"a", "value": b"b"}]
    assert [(p["name"], p["value"]) for p in request["parameters"]] == [
        ("body", {"x": 1}),
        ("text", "t"),
        ("raw", b"r"),
    ]
    assert type(request["parameters"][2]["value"]) is bytearray


def test_more_bytes_than_asked_for_are_kept():
    conn = FieldConnection(
        b"I", *field(b"i"), END, *field(b"n"), encode_int(0), encode_int(2), b"more than two",
        END, END,
    )  # fmt: skip
    _, (request,) = otf.retrieve_msg(conn)
    assert request["parameters"][0]["value"] == b"more than two"


def test_fields_that_come_in_pieces():
    conn = FieldConnection(b"I", b"\0\0", b"\0\4", b"ab", b"cd", END, END, END)
    _, (request,) = otf.retrieve_msg(conn)
    assert request["requestId"] == b"abcd"


def test_unknown_command():
    with pytest.raises(ValueError, match="Invalid command: b'X'"):
        otf.retrieve_msg(FieldConnection(b"X"))


def test_a_closed_connection_ends_the_process_with_0():
    with pytest.raises(SystemExit) as end:
        otf.retrieve_msg(FieldConnection(b""))
    assert end.value.code == 0


def test_decoding_switched_off(monkeypatch):
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")
    conn = FieldConnection(
        b"I", *field(b"i"), END, *field(b"n"), *field(b"application/json"), *field(b"1"), END, END
    )
    _, (request,) = otf.retrieve_msg(conn)
    assert request["parameters"][0]["value"] == b"1"


def test_load_response():
    assert otf.create_load_model_response(200, "ok") == b"\0\0\0\xc8\0\0\0\2ok\xff\xff\xff\xff"


def test_response_headers():
    assert otf.encode_response_headers({"a": "b", "cc": "é"}) == (
        encode_int(2) + encode_field(b"a") + encode_field(b"b")
        + encode_field(b"cc") + encode_field("é".encode())
    )  # fmt: skip


def read(reply: bytes):
    reader = ReplyReader(1 << 20)
    reader.feed(bytes(reply))
    message = reader.next_predict()
    assert reader.next_predict() is None
    return message


@pytest.mark.parametrize(
    ("item", "body"),
    [
        (b"raw", b"raw"),
        (bytearray(b"raw"), b"raw"),
        ("é", "é".encode()),
        (2, b"2"),
        (None, b"null"),
        ({"é": [1]}, json.dumps({"é": [1]}, indent=2).encode()),
        ([1.5, True], b"[\n  1.5,\n  true\n]"),
    ],
)
def test_items_become_bytes(item, body):
    reply = read(otf.create_predict_response([item], {0: "id"}, "Prediction success", 200))
    assert reply.message == "Prediction success"
    (prediction,) = reply.predictions
    assert bytes(prediction.body) == body
    assert prediction[:5] == (b"id", b"", 200, b"", [])


def test_a_tensor_is_saved():
    torch = pytest.importorskip("torch")
    reply = read(otf.create_predict_response([torch.ones(2)], {0: "i"}, "Prediction success", 200))
    body = bytes(reply.predictions[0].body)
    assert torch.load(io.BytesIO(body)).tolist() == [1.0, 1.0]


def test_a_failed_batch():
    reply = read(otf.create_predict_response(None, {0: "a", 1: "b"}, "no", 503))
    assert (reply.code, reply.message) == (503, "no")
    assert [(p.id, p.status, p.body) for p in reply.predictions] == [
        (b"a", 503, b"error"),
        (b"b", 503, b"error"),
    ]


def test_an_item_without_bytes_fails_the_batch():
    reply = read(otf.create_predict_response(["a", {1, 2}], {0: "a", 1: "b"}, "Success", 200))
    assert (reply.code, reply.message) == (503, "Unsupported model output data type.")


def test_other_ranks_say_nothing(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert otf.create_predict_response(["a"], {0: "a"}, "ok", 200) is None
    context = new_context()
    assert send_intermediate_predict_response(["a"], {0: "i"}, "x", 200, context) is None
    assert context.cl_socket.sent == b""


def new_context(count: int = 1) -> Context:
    context = Context("m", "/d", None, 1, None, "1.0")
    context.request_processor = [RequestProcessor({}) for _ in range(count)]
    context.cl_socket = FieldConnection()
    return context


def test_status_and_headers_come_from_the_context():
    context = new_context(2)
    context.set_response_content_type(0, "text/plain")
    context.set_response_status(418, "teapot", 1)
    reply = read(otf.create_predict_response(["a", "b"], {0: "x", 1: "y"}, "ok", 200, context))
    first, second = reply.predictions
    assert first.content_type == b"text/plain"
    assert first.headers == [(b"content-type", b"text/plain")]
    assert (second.status, second.reason, second.headers) == (418, b"teapot", [])


def test_streaming_marks():
    context = new_context()
    send_intermediate_predict_response(["part"], {0: "i"}, "more", 200, context)
    part = read(context.cl_socket.sent)
    last = read(otf.create_predict_response(["end"], {0: "i"}, "ok", 200, context))
    assert part.predictions[0].headers == [(b"ts_stream_next", b"true")]
    assert last.predictions[0].headers == [(b"ts_stream_next", b"false")]


def test_the_old_place_of_streaming_warns():
    context = new_context()
    with pytest.warns(DeprecationWarning, match="handler_utils"):
        otf.send_intermediate_predict_response(["part"], {0: "i"}, "more", 200, context)
    assert read(context.cl_socket.sent).predictions[0].body == b"part"
