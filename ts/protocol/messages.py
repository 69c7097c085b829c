"""The messages of the worker protocol, both directions, without any socket.

    frontend -> worker   LoadModel, and a batch: a list of PredictRequest
    worker -> frontend   LoadReply, PredictReply

Between a frontend and a worker of ours (see `controls`) there are two more commands, Cancel and
Ping; a ping is answered by a PredictReply without predictions (`is_pong`).

Entry points: `encode_*` give bytes; `ReplyReader` (the frontend's side) and `CommandReader` (the
worker's side) take bytes in any split and give messages. The readers trust no length: one that is
negative or above the limit is a ProtocolError before anything is allocated for it.

A frontend or worker of TorchServe may stand on the other side, so the bytes are those of its
protocol.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from ts.protocol.frames import (
    EMPTY,
    END,
    INT,
    MAX_LENGTH,
    SMALL_INTS,
    TWO_INTS,
    Buffer,
    ByteInput,
    ProtocolError,
    encode_field,
    length_error,
    pack_int,
)
from ts.protocol.header_block import HeaderBlock
from ts.protocol.shared_memory import REFERENCE_MARK, REFERENCE_REST

__all__ = [
    "PING",
    "PONG",
    "Cancel",
    "CommandReader",
    "LoadModel",
    "LoadReply",
    "Part",
    "Ping",
    "PredictReply",
    "PredictRequest",
    "Prediction",
    "ProtocolError",
    "ReplyReader",
    "encode_cancel",
    "encode_load",
    "encode_load_reply",
    "encode_predict",
    "is_pong",
]

LOAD_COMMAND = b"L"
PREDICT_COMMAND = b"I"
CANCEL_COMMAND = b"C"
PING_COMMAND = b"P"

SUCCESS_MESSAGE = "Prediction success"

# Bodies from this size on travel as buffers of their own and are never copied; below it, one copy
# is cheaper than one more element in the list that the transport has to handle.
LARGE_BODY_BYTES = 16 * 1024

# A body of at least this size that is still on its way gets its final place before it has arrived.
DIRECT_BODY_BYTES = 64 * 1024

# How far the place of a body may run ahead of the bytes that have come, so that a length alone
# does not cost memory. (It also grows by doubling.)
DIRECT_AHEAD_BYTES = 4 * 1024 * 1024


class Part(NamedTuple):
    """One named input of a request. An empty content type is none."""

    name: bytes
    content_type: bytes
    body: Buffer


class PredictRequest(NamedTuple):
    """One request of a batch. Requests may share their headers.

    No parts: the question for the handler's own description, or a further round of a request that
    the worker has already seen.
    """

    id: bytes
    headers: Sequence[tuple[bytes, bytes]]
    parts: Sequence[Part]


class LoadModel(NamedTuple):
    model_name: str
    model_dir: str
    batch_size: int
    handler: str
    gpu_id: int | None
    envelope: str
    limit_max_image_pixels: bool


class Cancel(NamedTuple):
    """Nobody waits for the answer to request `id` any more. Answering it all the same is no fault.

    It follows the batch that holds the request, and may cross the answer.
    """

    id: bytes


class Ping(enum.Enum):
    """Are you there? Answered between batches."""

    PING = PING_COMMAND


class Prediction(NamedTuple):
    """The answer to one request. A large body is a view of what was received."""

    id: bytes
    content_type: bytes
    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    body: Buffer


class PredictReply(NamedTuple):
    """The answer to one batch; with a code other than 200 the predictions carry nothing of use."""

    code: int
    message: str
    predictions: list[Prediction]


class LoadReply(NamedTuple):
    code: int
    message: str


Command = LoadModel | list[PredictRequest] | Cancel | Ping


# Makes a named tuple of a plain one; its own constructor takes twice as long.
new_tuple = tuple.__new__


def encode_load(msg: LoadModel) -> bytes:
    return b"".join(
        (
            LOAD_COMMAND,
            encode_field(msg.model_name.encode()),
            encode_field(msg.model_dir.encode()),
            pack_int(msg.batch_size),
            encode_field(msg.handler.encode()),
            pack_int(-1 if msg.gpu_id is None else msg.gpu_id),
            encode_field(msg.envelope.encode()),
            b"\x01" if msg.limit_max_image_pixels else b"\x00",
        )
    )


PING = PING_COMMAND


def encode_cancel(request_id: bytes) -> bytes:
    return CANCEL_COMMAND + encode_field(request_id)


def encode_predict(requests: Sequence[PredictRequest]) -> list[Buffer]:
    """The batch as buffers to be written in this order.

    Every second buffer is a large body, and the one before it ends with its length. They are the
    caller's own objects, so they must not change before they are written.
    """
    buffers: list[Buffer] = []
    pieces: list[Buffer] = [PREDICT_COMMAND]
    add = pieces.append
    small = SMALL_INTS
    for request_id, headers, parts in requests:
        size = len(request_id)
        add(small[size] if size < 1024 else pack_int(size))
        add(request_id)
        if isinstance(headers, HeaderBlock):
            add(headers.encoded)
        else:
            for name, value in headers:
                size = len(name)
                add(small[size] if size < 1024 else pack_int(size))
                add(name)
                size = len(value)
                add(small[size] if size < 1024 else pack_int(size))
                add(value)
            add(END)
        for name, content_type, body in parts:
            size = len(name)
            add(small[size] if size < 1024 else pack_int(size))
            add(name)
            size = len(content_type)
            add(small[size] if size < 1024 else pack_int(size))
            add(content_type)
            size = len(body)
            if size < 1024:
                add(small[size])
                add(body)
            else:
                add(pack_int(size))
                if size < LARGE_BODY_BYTES:
                    add(body)
                else:
                    buffers.append(b"".join(pieces))
                    buffers.append(body)
                    pieces.clear()
        add(END)
    add(END)
    buffers.append(b"".join(pieces))
    return buffers


def encode_load_reply(code: int, message: str) -> bytes:
    return pack_int(code) + encode_field(message.encode()) + END


PONG_MESSAGE = "pong"
PONG = pack_int(200) + encode_field(PONG_MESSAGE.encode()) + END


def is_pong(reply: PredictReply) -> bool:
    return not reply.predictions and reply.message == PONG_MESSAGE


# How almost every reply begins: code and message, encoded.
_SUCCESS_HEAD = pack_int(200) + encode_field(SUCCESS_MESSAGE.encode())
_SUCCESS_HEAD_BYTES = len(_SUCCESS_HEAD)

# Longer messages and headers are not looked out for again.
MAX_REMEMBERED_BYTES = 4096


# What lies between id and body where the handler has set nothing: no content type, status 200, no
# reason phrase, no headers.
PLAIN_ANSWER = EMPTY + pack_int(200) + EMPTY + EMPTY
PLAIN_ANSWER_BYTES = len(PLAIN_ANSWER)

# The same of a piece of a stream: one header says that more follows.
MORE_FOLLOWS = (b"ts_stream_next", b"true")
PIECE_HEADERS = [MORE_FOLLOWS]
_PLAIN_PIECE = (
    EMPTY + pack_int(200) + EMPTY + pack_int(1) + b"".join(map(encode_field, MORE_FOLLOWS))
)
_PLAIN_PIECE_BYTES = len(_PLAIN_PIECE)


SharedBody = Callable[[int, int, int], Buffer]


class ReplyReader:
    """The frontend's ear: bytes of one worker in, replies out.

    The caller knows which reply comes next and asks for that kind; it may change the kind only
    between messages. After a ProtocolError the reader gives nothing but that error.

    max_field_bytes: the largest id, header, phrase or body accepted.
    shared_body: finds a body in shared memory by number, offset and size, or raises ProtocolError;
        without it a reference is an impossible length. May be set between two messages.
    """

    def __init__(self, max_field_bytes: int) -> None:
        self.shared_body: SharedBody | None = None
        self._limit = max_field_bytes
        self._input = ByteInput()
        self._failure: ProtocolError | None = None
        self._load_replies = self._parse_load_replies()
        self._predict_replies = self._parse_predict_replies()
        self.feed = self._input.feed  # one call less for every read from the socket

    def next_predict(self) -> PredictReply | None:
        """The next reply to a batch, or None until more bytes are fed."""
        try:
            return next(self._predict_replies)
        except (ProtocolError, StopIteration) as error:
            raise self._fail(error) from None

    def next_load(self) -> LoadReply | None:
        """The reply to LOAD, or None until more bytes are fed."""
        try:
            return next(self._load_replies)
        except (ProtocolError, StopIteration) as error:
            raise self._fail(error) from None

    def _fail(self, error: Exception) -> ProtocolError:
        if isinstance(error, ProtocolError):
            self._failure = error
        # A generator that has raised is over, and says so with StopIteration from then on.
        return self._failure or ProtocolError("the reader is closed")

    def _parse_load_replies(self) -> Generator[LoadReply | None, None, None]:
        source = self._input
        while True:
            while len(source.buffer) - source.position < 8:
                if not source.merge():
                    yield None
            buffer, position = source.buffer, source.position
            code, size = TWO_INTS.unpack_from(buffer, position)
            position += 8
            if not 0 <= size <= self._limit:
                raise length_error("load message", size, self._limit)
            if position + size + 4 > len(buffer):
                buffer, position, _ = yield from source.more(buffer, position, size + 4)
            message = str(buffer[position : position + size], "utf-8", "replace")
            position += size
            (end_mark,) = INT.unpack_from(buffer, position)
            if end_mark != -1:
                raise ProtocolError(f"load reply ends with {end_mark} instead of -1")
            source.buffer = buffer
            source.position = position + 4
            yield LoadReply(code, message)

    def _parse_predict_replies(self) -> Generator[PredictReply | None, None, None]:
        # One flat function on local names: this runs for every request that the server answers.
        # Each field is followed by a number, so both are waited for together.
        source = self._input
        limit = self._limit
        more = source.more
        int_at = INT.unpack_from
        two_ints_at = TWO_INTS.unpack_from
        predictions: list[Prediction] = []
        body: Buffer
        # A stream repeats its code and message with every piece.
        last_head = _SUCCESS_HEAD
        last_code = 200
        last_message = SUCCESS_MESSAGE
        while True:
            buffer = source.buffer
            position = source.position
            end = len(buffer)
            while end - position < 8:
                if not source.merge():
                    yield None
                buffer = source.buffer
                position = source.position
                end = len(buffer)

            if buffer.startswith(_SUCCESS_HEAD, position):
                code = 200
                message = SUCCESS_MESSAGE
                position += _SUCCESS_HEAD_BYTES
                if position + 4 > end:
                    buffer, position, end = yield from more(buffer, position, 4)
            elif buffer.startswith(last_head, position):
                code = last_code
                message = last_message
                position += len(last_head)
                if position + 4 > end:
                    buffer, position, end = yield from more(buffer, position, 4)
            else:
                code, size = two_ints_at(buffer, position)
                position += 8
                if not 0 <= size <= limit:
                    raise length_error("reply message", size, limit)
                if position + size + 4 > end:
                    buffer, position, end = yield from more(buffer, position, size + 4)
                text = buffer[position : position + size]
                message = str(text, "utf-8", "replace")
                position += size
                if size < MAX_REMEMBERED_BYTES:
                    last_head = TWO_INTS.pack(code, size) + text
                    last_code = code
                    last_message = message

            predictions = []
            (size,) = int_at(buffer, position)
            position += 4
            while size != -1:
                if not 0 <= size <= limit:
                    raise length_error("request id", size, limit)
                stop = position + size
                if stop + 4 > end:
                    buffer, position, end = yield from more(buffer, position, size + 4)
                    stop = size
                request_id = buffer[position:stop]

                headers: list[tuple[bytes, bytes]] = []
                plain_bytes = 0
                if buffer.startswith(PLAIN_ANSWER, stop):
                    plain_bytes = PLAIN_ANSWER_BYTES
                elif buffer.startswith(_PLAIN_PIECE, stop):
                    plain_bytes = _PLAIN_PIECE_BYTES
                    headers = PIECE_HEADERS
                if plain_bytes:
                    content_type = reason = b""
                    status = 200
                    position = stop + plain_bytes
                    if position + 4 > end:
                        buffer, position, end = yield from more(buffer, position, 4)
                    (size,) = int_at(buffer, position)
                    position += 4
                else:
                    (size,) = int_at(buffer, stop)
                    position = stop + 4
                    if not 0 <= size <= limit:
                        raise length_error("content type", size, limit)
                    stop = position + size
                    if stop + 8 > end:
                        buffer, position, end = yield from more(buffer, position, size + 8)
                        stop = size
                    content_type = buffer[position:stop]

                    status, size = two_ints_at(buffer, stop)
                    position = stop + 8
                    if not 0 <= size <= limit:
                        raise length_error("reason phrase", size, limit)
                    stop = position + size
                    if stop + 4 > end:
                        buffer, position, end = yield from more(buffer, position, size + 4)
                        stop = size
                    reason = buffer[position:stop]

                    (count,) = int_at(buffer, stop)
                    position = stop + 4
                    if count < 0:
                        raise ProtocolError(f"header count is {count}")
                    if position + 4 > end:
                        buffer, position, end = yield from more(buffer, position, 4)
                    (size,) = int_at(buffer, position)
                    position += 4
                    while count:
                        if not 0 <= size <= limit:
                            raise length_error("header name", size, limit)
                        stop = position + size
                        if stop + 4 > end:
                            buffer, position, end = yield from more(buffer, position, size + 4)
                            stop = size
                        name = buffer[position:stop]
                        (size,) = int_at(buffer, stop)
                        position = stop + 4
                        if not 0 <= size <= limit:
                            raise length_error("header value", size, limit)
                        stop = position + size
                        if stop + 4 > end:
                            buffer, position, end = yield from more(buffer, position, size + 4)
                            stop = size
                        headers.append((name, buffer[position:stop]))
                        (size,) = int_at(buffer, stop)
                        position = stop + 4
                        count -= 1

                if 0 <= size <= limit:
                    stop = position + size
                    if stop + 4 > end:
                        buffer, position, end = yield from more(buffer, position, size + 4)
                        stop = size
                    if size < LARGE_BODY_BYTES:
                        body = buffer[position:stop]
                    else:
                        body = memoryview(buffer)[position:stop]
                elif size == REFERENCE_MARK and self.shared_body is not None:
                    stop = position + REFERENCE_REST.size
                    if stop + 4 > end:
                        buffer, position, end = yield from more(buffer, position, 16)
                        stop = REFERENCE_REST.size
                    number, offset, size = REFERENCE_REST.unpack_from(buffer, position)
                    if not 0 <= size <= limit:
                        raise length_error("response body", size, limit)
                    body = self.shared_body(number, offset, size)
                else:
                    raise length_error("response body", size, limit)
                predictions.append(
                    new_tuple(Prediction, (request_id, content_type, status, reason, headers, body))
                )
                (size,) = int_at(buffer, stop)
                position = stop + 4

            if position == end:
                source.buffer = b""
                source.position = 0
            else:
                source.buffer = buffer
                source.position = position
            yield new_tuple(PredictReply, (code, message, predictions))
            # A waiting generator keeps its names, and a large body must not live as long as that.
            predictions = []
            body = b""


class CommandReader:
    """The worker's ear: bytes of the frontend in, commands out. Bodies are bytearrays of their own.

    While a large body is on its way, `body_space` is the place for its next bytes: a socket may
    read into it and then call `body_filled`, which saves all copies. It is a fresh view each time
    and must not be kept.

    shared_body: copies a body out of shared memory, as in `ReplyReader`.
    """

    def __init__(
        self, max_field_bytes: int = MAX_LENGTH, shared_body: SharedBody | None = None
    ) -> None:
        self._limit = max_field_bytes
        self._shared_body = shared_body
        self._input = ByteInput()
        self._failure: ProtocolError | None = None
        self._commands = self._parse_commands()
        # The last headers that were read, and their bytes with the end mark: mostly the next ones
        # are the same, whoever has sent them.
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_bytes = END
        # The body being received, while one is.
        self._body: bytearray | None = None
        self._body_bytes = 0

    @property
    def body_space(self) -> memoryview | None:
        body = self._body
        return None if body is None else memoryview(body)[self._body_bytes :]

    def body_filled(self, count: int) -> None:
        """`count` bytes were read into `body_space`."""
        self._body_bytes += count
        if self._body is not None and self._body_bytes == len(self._body):
            # Complete, or to be made longer: the parser decides when it is asked for a command.
            self._body = None

    def feed(self, data: Buffer) -> None:
        body = self._body
        if body is None:
            self._input.feed(data)
            return
        start = self._body_bytes
        count = min(len(data), len(body) - start)
        view = memoryview(data)
        body[start : start + count] = view[:count]
        self.body_filled(count)
        if count < len(data):
            self._input.feed(view[count:])

    def next(self) -> Command | None:
        """The next command, or None until more bytes are fed."""
        try:
            return next(self._commands)
        except ProtocolError as error:
            self._failure = error
            raise
        except StopIteration:
            # A generator that has raised is over, and says so from then on.
            raise self._failure or ProtocolError("the reader is closed") from None

    def _parse_commands(self) -> Generator[Command | None, None, None]:
        source = self._input
        while True:
            while source.position == len(source.buffer):
                if not source.merge():
                    yield None
            command = source.buffer[source.position]
            source.position += 1
            if command == PREDICT_COMMAND[0]:
                yield (yield from self._parse_batch())
            elif command == LOAD_COMMAND[0]:
                yield (yield from self._parse_load())
            elif command == CANCEL_COMMAND[0]:
                yield (yield from self._parse_cancel())
            elif command == PING_COMMAND[0]:
                yield Ping.PING
            else:
                raise ProtocolError(f"Invalid command: {bytes((command,))!r}")

    def _parse_load(self) -> Generator[None, None, LoadModel]:
        model_name = yield from self._text("model name")
        model_dir = yield from self._text("model directory")
        batch_size = yield from self._int()
        handler = yield from self._text("handler")
        gpu_id = yield from self._int()
        envelope = yield from self._text("envelope")
        (limit_flag,) = yield from self._bytes(1)
        return LoadModel(
            model_name,
            model_dir,
            batch_size,
            handler,
            None if gpu_id < 0 else gpu_id,
            envelope,
            limit_flag != 0,
        )

    def _parse_cancel(self) -> Generator[None, None, Cancel]:
        size = yield from self._int()
        if not 0 <= size <= self._limit:
            raise length_error("request id", size, self._limit)
        return Cancel((yield from self._bytes(size)))

    def _bytes(self, count: int) -> Generator[None, None, bytes]:
        source = self._input
        if source.position + count > len(source.buffer):
            source.buffer, source.position, _ = yield from source.more(
                source.buffer, source.position, count
            )
        start = source.position
        source.position = start + count
        return source.buffer[start : start + count]

    def _int(self) -> Generator[None, None, int]:
        data = yield from self._bytes(4)
        return int.from_bytes(data, "big", signed=True)

    def _text(self, field: str) -> Generator[None, None, str]:
        size = yield from self._int()
        if not 0 <= size <= self._limit:
            raise length_error(field, size, self._limit)
        data = yield from self._bytes(size)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ProtocolError(f"{field} is not UTF-8: {error}") from error

    def _parse_batch(self) -> Generator[None, None, list[PredictRequest]]:
        # Flat and on local names for the same reason as in ReplyReader.
        source = self._input
        limit = self._limit
        more = source.more
        int_at = INT.unpack_from
        buffer = source.buffer
        position = source.position
        end = len(buffer)

        requests: list[PredictRequest] = []
        if position + 4 > end:
            buffer, position, end = yield from more(buffer, position, 4)
        (size,) = int_at(buffer, position)
        position += 4
        while size != -1:
            if not 0 <= size <= limit:
                raise length_error("request id", size, limit)
            stop = position + size
            if stop + 4 > end:
                buffer, position, end = yield from more(buffer, position, size + 4)
                stop = size
            request_id = buffer[position:stop]

            if buffer.startswith(self._header_bytes, stop):
                headers = self._headers
                position = stop + len(self._header_bytes)
            else:
                headers = []
                start_buffer = buffer
                start = stop
                (size,) = int_at(buffer, stop)
                position = stop + 4
                while size != -1:
                    if not 0 <= size <= limit:
                        raise length_error("header name", size, limit)
                    stop = position + size
                    if stop + 4 > end:
                        buffer, position, end = yield from more(buffer, position, size + 4)
                        stop = size
                    name = buffer[position:stop]
                    (size,) = int_at(buffer, stop)
                    position = stop + 4
                    if not 0 <= size <= limit:
                        raise length_error("header value", size, limit)
                    stop = position + size
                    if stop + 4 > end:
                        buffer, position, end = yield from more(buffer, position, size + 4)
                        stop = size
                    headers.append((name, buffer[position:stop]))
                    (size,) = int_at(buffer, stop)
                    position = stop + 4
                if buffer is start_buffer and position - start <= MAX_REMEMBERED_BYTES:
                    self._headers = headers
                    self._header_bytes = buffer[start:position]

            parts: list[Part] = []
            if position + 4 > end:
                buffer, position, end = yield from more(buffer, position, 4)
            (size,) = int_at(buffer, position)
            position += 4
            while size != -1:
                if not 0 <= size <= limit:
                    raise length_error("parameter name", size, limit)
                stop = position + size
                if stop + 4 > end:
                    buffer, position, end = yield from more(buffer, position, size + 4)
                    stop = size
                name = buffer[position:stop]
                (size,) = int_at(buffer, stop)
                position = stop + 4
                if not 0 <= size <= limit:
                    raise length_error("content type", size, limit)
                stop = position + size
                if stop + 4 > end:
                    buffer, position, end = yield from more(buffer, position, size + 4)
                    stop = size
                content_type = buffer[position:stop]
                (size,) = int_at(buffer, stop)
                position = stop + 4
                if not 0 <= size <= limit:
                    if size != REFERENCE_MARK or self._shared_body is None:
                        raise length_error("parameter value", size, limit)
                    stop = position + REFERENCE_REST.size
                    if stop + 4 > end:
                        buffer, position, end = yield from more(buffer, position, 16)
                        stop = REFERENCE_REST.size
                    body = self._shared_body(*REFERENCE_REST.unpack_from(buffer, position))
                    parts.append(new_tuple(Part, (name, content_type, body)))
                    (size,) = int_at(buffer, stop)
                    position = stop + 4
                    continue
                stop = position + size
                if stop + 4 <= end:
                    body = bytearray(memoryview(buffer)[position:stop])
                elif size < DIRECT_BODY_BYTES:
                    buffer, position, end = yield from more(buffer, position, size + 4)
                    stop = size
                    body = bytearray(memoryview(buffer)[:stop])
                else:
                    body = yield from self._receive_body(buffer, position, size)
                    buffer, stop, end = yield from more(b"", 0, 4)
                parts.append(new_tuple(Part, (name, content_type, body)))
                (size,) = int_at(buffer, stop)
                position = stop + 4

            requests.append(new_tuple(PredictRequest, (request_id, headers, parts)))
            if position + 4 > end:
                buffer, position, end = yield from more(buffer, position, 4)
            (size,) = int_at(buffer, position)
            position += 4

        if position == end:
            source.buffer = b""
            source.position = 0
        else:
            source.buffer = buffer
            source.position = position
        return requests

    def _receive_body(
        self, buffer: bytes, position: int, size: int
    ) -> Generator[None, None, bytearray]:
        """Assemble a body of `size` bytes that begins at `position`, in its final place.

        What follows the body is left as chunks in the input.
        """
        body = bytearray(memoryview(buffer)[position:])
        while True:
            for chunk in self._input.take():
                body += chunk
            received = len(body)
            if received >= size:
                self._input.put_back(memoryview(body)[size:])
                del body[size:]
                return body
            body += bytes(min(size - received, max(received, DIRECT_AHEAD_BYTES)))
            self._body = body
            self._body_bytes = received
            while self._is_body_open():
                yield None

    def _is_body_open(self) -> bool:
        return self._body is not None
