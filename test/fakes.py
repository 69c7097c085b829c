"""Stand-ins that behave: a clock that tests move, and workers without a process.

`Script` is what the workers of one test do; its `connect` takes the place of a real connection's.
Each `ScriptedConnection` is a real `SocketConnection` on a pair of in-memory pipes, so that frames,
readers and all that follows are those of the server; only the process at the other end is played.

    script = Script()                      # answers LOAD, echoes every request
    script.then(fails(503, "no"), holds)   # the next batch fails, the one after waits for `release`
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from reply_codec import encode_predict_reply

from ts.protocol.controls import mark_controls
from ts.protocol.messages import (
    PONG,
    Cancel,
    CommandReader,
    LoadModel,
    LoadReply,
    Part,
    Ping,
    Prediction,
    PredictRequest,
    encode_load_reply,
)
from ts_frontend.core.batch_queue import BatchQueue
from ts_frontend.core.errors import ServingError
from ts_frontend.core.inference import InferenceRequest, ResponseChunk
from ts_frontend.core.job import Command, Job
from ts_frontend.core.response_stream import ResponseStream
from ts_frontend.workers.connections.base import ConnectionOwner, SocketConnection

Batch = list[PredictRequest]
Header = tuple[bytes, bytes]


class FakeClock:
    """A `core.clock.Clock` that moves only when told to."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> float:
        self.now_s += seconds
        return self.now_s


async def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> Any:
    """What `condition` returns once that is true; TimeoutError names the condition."""
    give_up_s = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() >= give_up_s:
            code = condition.__code__ if hasattr(condition, "__code__") else None
            where = f"{code.co_filename}:{code.co_firstlineno}" if code else repr(condition)
            raise TimeoutError(f"not within {timeout_s:g} s: the condition at {where}")
        await asyncio.sleep(0.002)
    return result


async def turns(count: int = 5) -> None:
    """Let everything run that is ready to."""
    for _ in range(count):
        await asyncio.sleep(0)


# Jobs and their answers.


_numbers = itertools.count(1)


def new_job(
    request_id: str | None = None,
    body: bytes = b"",
    *,
    arrived_s: float = 0.0,
    command: Command = Command.PREDICT,
    deadline_s: float | None = None,
) -> Job:
    """Without an id it gets one that no other job has."""
    request_id = f"r{next(_numbers)}" if request_id is None else request_id
    request = InferenceRequest(request_id.encode(), [], [Part(b"body", b"", body)])
    return Job(request, arrived_s, command=command, deadline_s=deadline_s)


def put_job(queue: BatchQueue, body: bytes = b"hello", command: Command = Command.PREDICT) -> Job:
    """A request that has just come."""
    job = new_job(body=body, arrived_s=time.monotonic(), command=command)
    queue.put(job)
    return job


async def answer_of(job: Job) -> bytes:
    """The body of a plain answer; raises what the job failed with."""
    async with asyncio.timeout(20):
        (piece,) = await job.response.wait_complete()
    return bytes(piece.body)


async def failure_of(job: Job) -> ServingError:
    """What the job failed with."""
    try:
        async with asyncio.timeout(20):
            chunks = await job.response.wait_complete()
    except ServingError as error:
        return error
    raise AssertionError(f"it was answered: {chunks}")


def chunk(body: bytes, *, is_last: bool = True) -> ResponseChunk:
    return ResponseChunk(200, b"", b"", [], body, is_last)


class RecordingConsumer:
    """A client: what reached it, in order; bodies as bytes."""

    def __init__(self, stream: ResponseStream | None = None) -> None:
        self.chunks: list[ResponseChunk] = []
        self.errors: list[ServingError] = []
        if stream is not None:
            stream.attach(self)

    def on_chunk(self, chunk: ResponseChunk) -> None:
        assert not self.is_answered, "a chunk after the end"
        self.chunks.append(chunk)

    def on_error(self, error: ServingError) -> None:
        assert not self.is_answered, "an error after the end"
        self.errors.append(error)

    @property
    def is_answered(self) -> bool:
        return bool(self.errors) or any(chunk.is_last for chunk in self.chunks)

    @property
    def bodies(self) -> list[bytes]:
        return [bytes(chunk.body) for chunk in self.chunks]

    @property
    def error(self) -> ServingError:
        (error,) = self.errors
        return error


# What a scripted worker does with a batch.

Behaviour = Callable[["ScriptedConnection", Batch], None]


def echoes(worker: ScriptedConnection, batch: Batch) -> None:
    worker.answer([body_of(request) for request in batch])


def holds(worker: ScriptedConnection, batch: Batch) -> None:
    """Answers late: when the test says `release`."""


def fails(code: int, message: str) -> Behaviour:
    def behaviour(worker: ScriptedConnection, batch: Batch) -> None:
        worker.answer([b"error" for _ in batch], code=code, message=message)

    return behaviour


def streams(*bodies: bytes) -> Behaviour:
    """One reply per body, the same for every request of the batch."""

    def behaviour(worker: ScriptedConnection, batch: Batch) -> None:
        for body in bodies[:-1]:
            worker.answer([body for _ in batch], more=True)
        worker.answer([bodies[-1] for _ in batch], more=False)

    return behaviour


def answers_with_id(request_id: bytes) -> Behaviour:
    def behaviour(worker: ScriptedConnection, batch: Batch) -> None:
        worker.reply([Prediction(request_id, b"", 200, b"", [], b"") for _ in batch])

    return behaviour


def answers_for(count: int) -> Behaviour:
    """As many predictions as said, whatever the batch's length."""

    def behaviour(worker: ScriptedConnection, batch: Batch) -> None:
        ids = [batch[min(index, len(batch) - 1)].id for index in range(count)]
        worker.reply([Prediction(id_, b"", 200, b"", [], b"") for id_ in ids])

    return behaviour


def says(data: bytes) -> Behaviour:
    """Raw bytes, most likely no message."""
    return lambda worker, batch: worker.say(data)


def leaves(worker: ScriptedConnection, batch: Batch) -> None:
    worker.hang_up()


def body_of(request: PredictRequest) -> bytes:
    return bytes(request.parts[0].body) if request.parts else b""


class Script:
    """What the workers of one test do, and the connections that were opened to them.

    load_reply:  None never answers.
    refusals:    raised by the next attempts to connect, one each.
    has_pongs:   pings are answered.
    """

    def __init__(self, *behaviours: Behaviour) -> None:
        self.load_reply: LoadReply | None = LoadReply(200, "loaded model")
        self.refusals: deque[OSError] = deque()
        self.default: Behaviour = echoes
        self.has_pongs = True
        self.connections: list[ScriptedConnection] = []
        self.addresses: list[str] = []
        self._next = deque(behaviours)

    def understand_controls(self) -> None:
        """The next workers are ours: they may be sent cancels and pings."""
        self.load_reply = LoadReply(200, mark_controls("loaded model"))

    def then(self, *behaviours: Behaviour) -> None:
        """For the next batches, one each, whichever worker takes them."""
        self._next.extend(behaviours)

    def behaviour(self) -> Behaviour:
        return self._next.popleft() if self._next else self.default

    async def connect(
        self, address: str, owner: ConnectionOwner, max_field_bytes: int
    ) -> ScriptedConnection:
        if self.refusals:
            raise self.refusals.popleft()
        self.addresses.append(address)
        connection = ScriptedConnection(self, owner, max_field_bytes)
        self.connections.append(connection)
        return connection

    @property
    def batches(self) -> list[Batch]:
        return [batch for connection in self.connections for batch in connection.batches]


class ScriptedConnection(SocketConnection):
    """A worker's connection together with the worker.

    load:     what LOAD said, None before.
    batches:  those that came, in order.
    held:     the batch that `release` will answer, None if it was answered.
    cancels:  the ids of the requests that it was told to stop.
    pings:    how many it was sent.
    is_closed: the server's side has closed it.
    """

    def __init__(self, script: Script, owner: ConnectionOwner, max_field_bytes: int) -> None:
        super().__init__(owner, max_field_bytes)
        self.load: LoadModel | None = None
        self.batches: list[Batch] = []
        self.held: Batch | None = None
        self.cancels: list[bytes] = []
        self.pings = 0
        self.is_closed = False
        self._script = script
        self._commands = CommandReader()
        self._loop = asyncio.get_running_loop()
        self.connection_made(_Pipe(self))

    # The worker's end.

    def answer(
        self,
        bodies: Sequence[bytes],
        *,
        code: int = 200,
        message: str = "Prediction success",
        more: bool | None = None,
    ) -> None:
        """One reply to the last batch; `more` is the streaming marker."""
        headers: list[Header] = []
        if more is not None:
            headers.append((b"ts_stream_next", b"true" if more else b"false"))
        batch = self.batches[-1]
        predictions = [
            Prediction(request.id, b"", code, b"", headers, body)
            for request, body in zip(batch, bodies, strict=True)
        ]
        self.reply(predictions, code, message)

    def reply(
        self,
        predictions: Iterable[Prediction],
        code: int = 200,
        message: str = "Prediction success",
    ) -> None:
        self.held = None
        self.say(b"".join(encode_predict_reply(code, message, list(predictions))))

    def release(self) -> None:
        """The answer that `holds` kept."""
        echoes(self, self.batches[-1])

    def say(self, data: bytes) -> None:
        self._loop.call_soon(self._deliver, data)

    def hang_up(self) -> None:
        self._loop.call_soon(self._lose_if_open)

    def _lose_if_open(self) -> None:
        if not self.is_closed:
            self.connection_lost(None)

    def _deliver(self, data: bytes) -> None:
        if not self.is_closed:
            self.data_received(data)

    def took(self, data: bytes) -> None:
        self._commands.feed(data)
        while (command := self._commands.next()) is not None:
            if isinstance(command, LoadModel):
                self.load = command
                reply = self._script.load_reply
                if reply is not None:
                    self.say(encode_load_reply(reply.code, reply.message))
            elif isinstance(command, Cancel):
                self.cancels.append(command.id)
            elif isinstance(command, Ping):
                self.pings += 1
                if self._script.has_pongs:
                    self.say(PONG)
            else:
                # What was read may be a view of the reader's buffer: keep a copy.
                batch = [
                    PredictRequest(
                        bytes(request.id),
                        [(bytes(name), bytes(value)) for name, value in request.headers],
                        [Part(*(bytes(field) for field in part)) for part in request.parts],
                    )
                    for request in command
                ]
                self.batches.append(batch)
                self.held = batch
                self._script.behaviour()(self, batch)


class _Pipe(asyncio.Transport):
    """The server's end of the in-memory connection."""

    def __init__(self, worker: ScriptedConnection) -> None:
        super().__init__()
        self._worker = worker

    def write(self, data: Any) -> None:
        asyncio.get_running_loop().call_soon(self._worker.took, bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def abort(self) -> None:
        self._worker.is_closed = True
