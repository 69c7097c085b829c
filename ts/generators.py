"""Answers that a handler yields: generators become streamed replies.

A handler streams in one of two ways:

* `handle` is a generator. Each `yield` is a step of the whole batch: a list with one item per
  request, where None says "nothing for this one now". In a batch of one request anything but a
  list is that request's piece.
* `handle` returns its list with a generator in place of an answer. Each is one request's stream;
  they take turns, and each ends by itself.

Generators may be asynchronous, too. A piece is encoded like any item of an answer and is sent at
once; what a generator returns at its end, if not None, is its last piece. When nobody waits for a
stream any more, its generator is closed: it ends by GeneratorExit at its `yield`, and its
`finally` blocks run. An exception in a generator fails the batch, as one in `handle` does.

Entry points: `has_streams`, then `drain` or `drain_async`; `run_to_end` for the call at the start.
"""

from __future__ import annotations

import asyncio
import os
import types
import warnings
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any

from ts.context import Context, RequestCancelled
from ts.protocol.batch_reply import encode_batch_reply, encode_item
from ts.protocol.controls import CONTROLS_VARIABLE
from ts.protocol.frames import Buffer
from ts.utils.util import PredictionException

_GENERATORS = frozenset({types.GeneratorType, types.AsyncGeneratorType})
INTERMEDIATE_MESSAGE = "Intermediate response"


class StreamError(PredictionException):
    """A generator yielded what is no step of its batch: the handler's fault, as 503."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 503)


def has_streams(ret: Any) -> bool:
    """Whether `ret`, of a handler, is a generator or a list with generators in it."""
    if type(ret) is list:
        for item in ret:  # noqa: SIM110  every batch comes by, and most have one item
            if type(item) in _GENERATORS:
                return True
        return False
    return type(ret) in _GENERATORS


def drain(ret: Any, request_ids: Mapping[int, str], context: Context) -> list[Any]:
    """Send what the generators in `ret` yield; the last items of the answers, for the reply.

    Raises what the generators raise, RequestCancelled when nobody waits any more,
    UnsupportedOutput for a piece that has no bytes, and StreamError.
    """
    batch = _Batch(ret, request_ids, context)
    try:
        while batch.streams:
            _close(batch.take_unread())
            for stream in batch.streams:
                stream.accept(*_advance(stream.generator))
            batch.send_round()
        return batch.items
    finally:
        _close(batch.streams)


async def drain_async(ret: Any, request_ids: Mapping[int, str], context: Context) -> list[Any]:
    """As `drain`, awaiting asynchronous generators; plain ones are advanced in a thread."""
    batch = _Batch(ret, request_ids, context)
    try:
        while batch.streams:
            await _close_async(batch.take_unread())
            for stream in batch.streams:
                stream.accept(*await _advance_async(stream.generator))
            batch.send_round()
        return batch.items
    finally:
        await _close_async(batch.streams)


def run_to_end(ret: Any) -> None:
    """Run a generator that a function handler made of the call without data, at its start.

    Raises StreamError if it yields: there is no request yet.
    """
    try:
        _, is_over = _advance(ret)
    finally:
        _close([_Stream(ret, None)])
    if not is_over:
        raise StreamError("the handler yielded something for the call without data at its start")


class _Stream:
    """One generator, and the piece of it that waits to be sent."""

    def __init__(self, generator: Any, index: int | None) -> None:
        self.generator = generator
        self.index = index  # of its request; None: of the whole batch
        self.piece: Any = None
        self.is_over = False

    def accept(self, piece: Any, is_over: bool) -> None:
        self.piece, self.is_over = piece, is_over


class _Batch:
    """The streams of one batch and what goes into its next message.

    Every message has an entry for each request: the frontend wants it so.

    streams: those that have not come to their ends.
    items:   the pieces of the next message; when the streams are over, of the reply.
    """

    def __init__(self, ret: Any, request_ids: Mapping[int, str], context: Context) -> None:
        self._context = context
        self._request_ids = request_ids
        self._is_sender = os.environ.get("LOCAL_RANK", "0") == "0"
        self._marks = _StreamMarks(context, len(request_ids))
        if type(ret) is not list:
            self.items: list[Any] = [b""] * len(request_ids)
            self.streams = [_Stream(ret, None)]
            return
        if len(ret) != len(request_ids):
            raise StreamError(f"{len(ret)} items for {len(request_ids)} requests")
        self.streams = []
        self.items = []
        for index, item in enumerate(ret):
            if type(item) in _GENERATORS:
                self.streams.append(_Stream(item, index))
                self.items.append(b"")
            else:
                self.items.append(encode_item(item))
                self._marks.end(index)

    def take_unread(self) -> list[_Stream]:
        """Take out the streams that nobody reads any more.

        Raises RequestCancelled if that is true of the whole batch.
        """
        is_cancelled = self._context.is_cancelled
        if is_cancelled():
            raise RequestCancelled("nobody reads the stream any more")
        if len(self._request_ids) == 1:
            return []
        unread = [
            stream
            for stream in self.streams
            if stream.index is not None and is_cancelled(stream.index)
        ]
        for stream in unread:
            self.streams.remove(stream)
            self._marks.end(stream.index)
        return unread

    def send_round(self) -> None:
        """Send the new pieces. What the last streams end with stays for the reply."""
        for stream in self.streams:
            self._put(stream)
        self.streams = [stream for stream in self.streams if not stream.is_over]
        if self.streams and (any(map(len, self.items)) or self._marks.is_changed):
            if self._is_sender:
                buffers: list[Buffer] = encode_batch_reply(
                    self.items, self._request_ids, INTERMEDIATE_MESSAGE, 200, self._marks
                )
                self._context.cl_socket.sendall(b"".join(buffers))
            self._marks.is_changed = False
            self.items = [b""] * len(self.items)

    def _put(self, stream: _Stream) -> None:
        piece, stream.piece = stream.piece, None
        if stream.index is not None:
            self._set(stream.index, piece)
            if stream.is_over:
                self._marks.end(stream.index)
        elif type(piece) is list:
            if len(piece) != len(self.items):
                raise StreamError(
                    f"yielded {len(piece)} items for {len(self.items)} requests; a list is one "
                    "item per request"
                )
            for index, item in enumerate(piece):
                self._set(index, item)
        elif len(self.items) == 1:
            self._set(0, piece)
        elif piece is not None:
            raise StreamError(
                f"yielded a {type(piece).__name__} for {len(self.items)} requests; yield a list "
                "with one item per request"
            )

    def _set(self, index: int, piece: Any) -> None:
        if piece is not None:
            self.items[index] = encode_item(piece)


class _StreamMarks:
    """The context of a message whose requests may end one by one (see `ResponseContext`)."""

    def __init__(self, context: Context, size: int) -> None:
        self.is_changed = False  # an end that no message has told yet
        # TorchServe's frontend forgets a request at its last piece, and takes its entry in a later
        # message for an error: there, all requests of a batch end together.
        self._ends_early = bool(os.environ.get(CONTROLS_VARIABLE))
        self._is_over = [False] * size
        self.stopping_criteria = [self._criterion(index) for index in range(size)]
        self.get_response_status = context.get_response_status
        self.get_response_content_type = context.get_response_content_type
        self.get_response_headers = context.get_response_headers
        self.set_response_header = context.set_response_header

    def end(self, index: int) -> None:
        """The next message has the last piece of this request."""
        if self._ends_early:
            self._is_over[index] = self.is_changed = True

    def _criterion(self, index: int) -> Callable[[Any], bool]:
        return lambda _item: self._is_over[index]


def _advance(generator: Any) -> tuple[Any, bool]:
    """The next piece, and whether it was the end."""
    if isinstance(generator, AsyncGenerator):
        return _loop().run_until_complete(_advance_async(generator))
    return _step(generator)


def _step(generator: Generator[Any, None, Any]) -> tuple[Any, bool]:
    try:
        return next(generator), False
    except StopIteration as end:
        return end.value, True


async def _advance_async(generator: Any) -> tuple[Any, bool]:
    if isinstance(generator, AsyncGenerator):
        try:
            return await generator.__anext__(), False
        except StopAsyncIteration:
            return None, True
    step = asyncio.ensure_future(asyncio.to_thread(_step, generator))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        # A thread cannot be stopped, and a running generator not be closed.
        await asyncio.wait({step})
        raise


def _close(streams: Sequence[_Stream]) -> None:
    """Close all of them, also if one raises: then that is raised at the end."""
    with ExitStack() as stack:
        for stream in reversed(streams):  # a stack is left from its end
            if isinstance(stream.generator, AsyncGenerator):
                stack.callback(_loop().run_until_complete, stream.generator.aclose())
            else:
                stack.callback(stream.generator.close)


async def _close_async(streams: Sequence[_Stream]) -> None:
    """As `_close`."""
    async with AsyncExitStack() as stack:
        for stream in reversed(streams):  # a stack is left from its end
            if isinstance(stream.generator, AsyncGenerator):
                stack.push_async_callback(stream.generator.aclose)
            else:
                stack.callback(stream.generator.close)


def _loop() -> asyncio.AbstractEventLoop:
    """This thread's loop: the one the worker has set, or else one that is made here."""
    with warnings.catch_warnings():
        # Some versions make a loop here and advise against relying on it.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return asyncio.get_event_loop()
        except RuntimeError:
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            return loop
