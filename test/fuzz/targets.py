"""What hostile bytes reach first, each as one function of bytes: `TARGETS`.

A target may do with its bytes what the server does, and raises nothing but what shows a defect: an
exception that is no refusal, or an assertion about what came out. `scripts/fuzz` looks for bytes
that make it raise; those that once did are kept in `cases/<target>/` and run with the suite
(test_cases.py). The seeds are where the search begins.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fuzzing import outcome, pieces_of
from google.protobuf.message import DecodeError
from http_wire import Wire
from reply_codec import encode_predict_reply
from strict_http import read_strictly

from ts.protocol.frames import encode_field, encode_int
from ts.protocol.messages import (
    CommandReader,
    LoadModel,
    Part,
    Prediction,
    PredictRequest,
    ReplyReader,
    encode_cancel,
    encode_load,
    encode_predict,
)
from ts.protocol.tensors import ENVELOPE
from ts_frontend.archive.manifest import MANIFEST_PATH, Manifest
from ts_frontend.archive.model_config import parse_model_config
from ts_frontend.archive.unpack import ArchiveLimits, unpack
from ts_frontend.core.errors import InvalidArgument, InvalidModel, ServingError
from ts_frontend.core.model import Model, ModelConfig, ModelId
from ts_frontend.dialects.open_inference import convert, grpc_convert
from ts_frontend.dialects.open_inference.compression import decompressed
from ts_frontend.dialects.open_inference.errors import InvalidAnswer
from ts_frontend.grpc.stubs.open_inference_pb2 import ModelInferRequest
from ts_frontend.http.multipart import FormPart, parse_form, parse_multipart

MAX_UNPACKED_BYTES = 1 << 20
_MAX_FIELD_BYTES = 1 << 16
_LIMITS = ArchiveLimits(
    max_entries=100, max_bytes=MAX_UNPACKED_BYTES, max_ratio=20, ratio_free_bytes=10_000
)
MIN_REQUEST_BYTES = len(b"GET / HTTP/1.1\r\n\r\n")
_LOOP = asyncio.new_event_loop()
_MODEL = Model(ModelId("m", "1.0"), ModelConfig(), path="/", handler="h.py")
_RAW_MODEL = Model(ModelId("m", "1.0"), ModelConfig(), path="/", handler="h.py", envelope=ENVELOPE)


class Target(NamedTuple):
    """check: of any bytes. seeds: bytes that go far by themselves."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


# The HTTP connection: the first byte chooses the sizes in which the others arrive.


def check_http(data: bytes) -> None:
    """Every request that is found is one, whatever the pieces; anything else ends in a refusal."""
    _LOOP.run_until_complete(_check_http(data))


async def _check_http(data: bytes) -> None:
    step, stream = (data[0] % 61 + 1, data[1:]) if data else (1, b"")
    whole, split = Wire(), Wire(answers_at_once=False)
    for wire, pieces in ((whole, [stream]), (split, _slices(stream, step))):
        for piece in pieces:
            if piece and wire.transport.takes_input:
                wire.feed(piece)
                # After some requests of one piece the others wait for the loop's next turn.
                for _ in range(len(piece) // MIN_REQUEST_BYTES):
                    await asyncio.sleep(0)
        if wire.transport.takes_input and wire.connection.current is None:
            wire.connection.eof_received()
        while wire.connection.current is not None:
            request = wire.connection.current
            request.respond(200, b"%d" % len(request.body))
            assert wire.connection.current is not request
        assert set(wire.statuses) <= {100, 200, 400, 413, 417}, wire.statuses
        wire.connection.connection_lost(None)
    assert _requests(split) == _requests(whole)
    assert split.statuses == whole.statuses
    if b"expect" in stream.lower():
        return  # 417 and 413 answer requests that a handler never sees
    found = _requests(whole)
    expected = read_strictly(stream)
    assert found == expected[: len(found)]
    if len(found) < len(expected):
        assert not whole.transport.takes_input, "stricter than it need be, and says so"


def _requests(wire: Wire) -> list[tuple[bytes, bytes]]:
    return [(request.target, bytes(request.body)) for request in wire.requests]


def _slices(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def http_seeds() -> Iterator[bytes]:
    chunked = b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nTrailer: t\r\n\r\n"
    for stream in (
        b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nX-A:   padded  \r\n\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\n\r\nHEAD /b HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"POST /predictions/m HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloPUT / HTTP/1.1\r\n\r\n",
        b"POST /c HTTP/1.1\r\n" + chunked + b"GET /d HTTP/1.1\r\n\r\n",
        b"POST /c HTTP/1.1\r\nContent-Length: 5\r\n" + chunked,
        b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
        b"POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
        b"GET / HTTP/1.0\r\n\r\nGET /never HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        yield b"\0" + stream
        yield b"\x06" + stream


# Forms: the content type, a line end, the body.


def check_forms(data: bytes) -> None:
    """A body gives parts that lie in it, in their order, or is refused; so for every buffer."""
    content_type, _, body = data.partition(b"\n")
    results = []
    for kind in (bytes, bytearray, memoryview):
        try:
            results.append(_plain_parts(parse_multipart(kind(body), content_type)))
        except InvalidArgument as error:
            results.append(error.message)
    assert results[0] == results[1] == results[2]
    if isinstance(results[0], list):
        position = 0
        for _, _, content in results[0]:
            position = body.index(content, position) + len(content)
    try:
        fields = parse_form(body)
    except InvalidArgument:
        return
    assert sum(len(name) + len(value) for name, _, value in fields) <= len(body)


def _plain_parts(parts: list[FormPart]) -> list[tuple[bytes, bytes, bytes]]:
    return [(name, content_type, bytes(body)) for name, content_type, body in parts]


def form_seeds() -> Iterator[bytes]:
    head = b'multipart/form-data; boundary="XyZ"\n'
    field = b'--XyZ\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    file = (
        b'--XyZ\r\nContent-Disposition: form-data; name=f; filename="a\\"b"\r\n'
        b"Content-Type: image/png; q=1\r\n\r\n" + bytes(range(256)) + b"\r\n"
    )
    yield head + field % (b"a", b"1") + field % (b"", b"") + file + b"--XyZ--\r\n"
    yield head + b"preamble\r\n" + field % (b"a", b"\r\n--Xy\r\n-") + b"--XyZ--epilogue"
    yield head + b"--XyZ--"
    yield b"multipart/form-data; boundary=a b\n--a b\r\n\r\n\r\n--a b--"
    yield b"application/x-www-form-urlencoded\na=1&b=&c&a=%C3%A9+%zz&&"


# Open Inference: the first byte chooses the form, a line the size of the JSON before the tensors.


def check_tensors(data: bytes) -> None:
    """A request is refused, or what goes to the worker reads again as the same."""
    choice, rest = (data[0] % 4, data[1:]) if data else (0, b"")
    if choice == 0:
        head, _, body = rest.partition(b"\n")
        _check_rest(body, head or None)
    elif choice == 1:
        _check_message(rest)
    elif choice == 2:
        _check_answer(rest)
    else:
        for coding in (b"gzip", b"deflate"):
            try:
                plain = decompressed(rest, coding, 5000)
            except InvalidArgument:
                continue
            assert len(plain) <= 5000


def _check_rest(body: bytes, json_bytes: bytes | None) -> None:
    for model in (None, _MODEL, _RAW_MODEL):
        try:
            call = convert.read_http(body, json_bytes, model)
        except InvalidArgument:
            continue
        parts = call.parts()
        assert sum(len(part.body) for part in parts[1:]) <= len(body)
        # Workers read JSON as Python does, with its words for what is no number.
        inputs = json.loads(bytes(call.body))["inputs"]
        carried = sum("data" not in tensor for tensor in inputs)
        assert carried == len(parts) - 1


def _check_message(data: bytes) -> None:
    try:
        message = ModelInferRequest.FromString(data)
    except DecodeError:
        return
    for model in (None, _RAW_MODEL):
        try:
            call = grpc_convert.read_message(message, model)
        except InvalidArgument:
            continue
        inputs = json.loads(bytes(call.body))["inputs"]
        assert len(inputs) == len(message.inputs)
        assert sum("data" not in tensor for tensor in inputs) == len(call.parts()) - 1


def _check_answer(data: bytes) -> None:
    """What a handler says is as little to be trusted: it is an answer, or named as none."""
    head, _, body = data.partition(b"\n")
    size = int(head) if head.isdigit() and len(head) < 9 else None
    asked = convert.InferCall("7", b"", (), size is not None)
    for write in (convert.write_http, grpc_convert.write_message):
        try:
            write(convert.read_answer(body, size), asked, _MODEL)
        except (InvalidAnswer, InvalidArgument):
            continue


def tensor_seeds() -> Iterator[bytes]:
    numbers = b'{"name": "a", "shape": [2, 2], "datatype": "FP32", "data": [[1.5, 2], [3, 4e5]]}'
    words = b'{"name": "b", "shape": [-1], "datatype": "BYTES", "data": ["x", "eQ=="]}'
    yield b'\0\n{"id": "7", "inputs": [%b, %b]}' % (numbers, words)
    yield b'\0\n{"inputs": [%b], "outputs": [{"name": "c"}], "parameters": {"p": 1}}' % numbers
    for datatype, raw in (
        ("FP32", bytes(8)),
        ("INT64", bytes(16)),
        ("BF16", b"\x80\x3f\xc0\x7f"),
        ("BOOL", b"\0\1"),
        ("BYTES", b"\1\0\0\0x\2\0\0\0yz"),
    ):
        tensor = {
            "name": "a",
            "shape": [2],
            "datatype": datatype,
            "parameters": {"binary_data_size": len(raw)},
        }
        text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        yield b"\0%d\n%b%b" % (len(text), text, raw)
        message = ModelInferRequest(model_name="m", id="7", raw_input_contents=[raw])
        message.inputs.add(name="a", datatype=datatype, shape=[2])
        yield b"\1" + message.SerializeToString()
        answer = json.dumps({"model_name": "m", "outputs": [tensor]}).encode()
        yield b"\2%d\n%b%b" % (len(answer), answer, raw)
    message = ModelInferRequest(model_name="m")
    message.parameters["p"].double_param = 1.5
    message.inputs.add(name="a", datatype="INT8", shape=[1]).contents.int_contents.append(-5)
    yield b"\1" + message.SerializeToString()
    yield b'\2\n{"outputs": [{"name": "a", "shape": [1], "datatype": "FP64", "data": [NaN]}]}'
    yield b"\3" + gzip.compress(b"hello" * 50, mtime=0)
    yield b"\3" + zlib.compress(bytes(100_000))


# Archives.


def check_archive(data: bytes) -> None:
    """It is refused and leaves nothing, or becomes a tree of plain files within the limits."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        source, target = os.path.join(folder, "a"), os.path.join(folder, "out")
        with open(source, "wb") as file:
            file.write(data)
        try:
            unpack(source, target, _LIMITS, lambda: None)
        except ServingError as error:
            reason = str(error)
        else:
            reason = ""
        if reason:
            assert reason.isprintable(), repr(reason)
            assert len(reason) < 500
            assert os.listdir(folder) == ["a"]
            return
        assert sorted(os.listdir(folder)) == ["a", "out"]
        total = count = 0
        for place, folders, files in os.walk(target):
            for name in folders + files:
                status = os.lstat(os.path.join(place, name))
                assert stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode), name
                assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID)
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
                count += 1
        assert total <= _LIMITS.max_bytes
        _check_model_files(target)


def _check_model_files(folder: str) -> None:
    manifest = os.path.join(folder, MANIFEST_PATH)
    if not os.path.isfile(manifest):
        return
    with open(manifest, "rb") as file:
        try:
            found = Manifest.parse(file.read())
        except InvalidModel:
            return
    for name in (found.serialized_file, found.model_file, found.config_file):
        place = os.path.realpath(os.path.join(folder, name))
        assert place == folder or place.startswith(os.path.realpath(folder) + os.sep)
    config = os.path.join(folder, found.config_file)
    if found.config_file and os.path.isfile(config):
        with open(config, "rb") as file:
            parse_model_config(file.read().decode("utf-8", "replace"), found.config_file)


_CONFIG = b"""minWorkers: 1
batchSize: 4
deviceIds: [0, 1]
warmup:
- body: '{}'
  status: 200
a: &a [1, 2]
b: *a
"""


def archive_seeds() -> Iterator[bytes]:
    manifest = {
        "createdOn": "now",
        "runtime": "python",
        "model": {
            "modelName": "m",
            "modelVersion": 1.0,
            "handler": "h.py:f",
            "configFile": "model-config.yaml",
        },
    }
    files = {
        MANIFEST_PATH: json.dumps(manifest).encode(),
        "h.py": b"def f(data, context): ...\n",
        "model-config.yaml": _CONFIG,
    }
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", method) as zipped:
            for name, content in files.items():
                zipped.writestr(zipfile.ZipInfo(name), content, method)
        yield made.getvalue()
    for top in ("m/", ""):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(top + name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        # Level 0: what is changed in it is changed in the tar.
        yield gzip.compress(made.getvalue().rstrip(b"\0") + bytes(1024), 0, mtime=0)


# Messages between server and workers: the first byte says who reads, the second in which pieces.


def check_frames(data: bytes) -> None:
    """Both readers end the same way however the bytes come, and keep to their limits."""
    choice, step, stream = (data[0], data[1], data[2:]) if len(data) > 1 else (0, 0, b"")
    cuts = [step % 40 + 1] * (len(stream) // (step % 40 + 1))
    results = []
    for sizes in ([], cuts):
        if choice % 3 == 0:
            commands = CommandReader()
            results.append(outcome(commands, commands.next, pieces_of(stream, sizes)))
        else:
            replies = ReplyReader(_MAX_FIELD_BYTES)
            read = replies.next_predict if choice % 3 == 1 else replies.next_load
            results.append(outcome(replies, read, pieces_of(stream, sizes)))
    assert results[0] == results[1]


def frame_seeds() -> Iterator[bytes]:
    requests = [
        PredictRequest(b"id-1", [(b"name", b"value")], [Part(b"body", b"text/csv", b"hello")]),
        PredictRequest(b"id-2", [], [Part(b"data", b"", b"x" * 300), Part(b"", b"", b"")]),
    ]
    batch = b"".join(map(bytes, encode_predict(requests)))
    load = encode_load(LoadModel("m", "/dir", 4, "handler.py", 0, "", True))
    answer = Prediction(b"id-1", b"a/b", 200, b"", [(b"n", b"v")], b"yes")
    for step in (b"\0", b"\x27"):
        yield b"\0" + step + load + encode_cancel(b"id-1") + batch
        for code, text, answers in ((200, "Prediction success", [answer]), (507, "full", [])):
            reply = b"".join(map(bytes, encode_predict_reply(code, text, answers)))
            yield b"\1" + step + reply
        yield b"\2" + step + encode_int(200) + encode_field(b"loaded") + encode_int(-1)


TARGETS = {
    "http": Target(check_http, http_seeds),
    "forms": Target(check_forms, form_seeds),
    "tensors": Target(check_tensors, tensor_seeds),
    "archive": Target(check_archive, archive_seeds),
    "frames": Target(check_frames, frame_seeds),
}
