"""`ResponseStream`: the one way back from a worker to a client.

One producer (the job's worker), one consumer (a dialect). The consumer either attaches a
`Consumer`, whose methods run in the producer's turn (no task, no future: this is the hot path), or
iterates with `async for`. Whoever comes first, nothing is lost: events wait in the stream until
somebody reads them, in bounded memory.

Cancelling is the consumer closing the stream; the job hears of it through `on_cancel`. After the
last chunk, an error or a cancel nothing follows: later pushes and failures are ignored, so that a
reply that crosses a cancel on the way is harmless.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from ts_frontend.core.errors import ErrorKind, RequestCancelled, ServingError
from ts_frontend.core.inference import ResponseChunk

MAX_BUFFERED_BYTES = 64 * 1024 * 1024
"""What may wait in one stream whose consumer does not read; more fails the stream."""


class Consumer(Protocol):
    """Who reads a stream. Neither method may raise."""

    def on_chunk(self, chunk: ResponseChunk) -> None: ...

    def on_error(self, error: ServingError) -> None: ...


class ResponseStream:
    __slots__ = (
        "_buffered",
        "_buffered_bytes",
        "_consumer",
        "_waiter",
        "error",
        "is_ended",
        "on_cancel",
    )

    def __init__(self) -> None:
        self.is_ended = False
        self.error: ServingError | None = None
        self.on_cancel: Callable[[], None] | None = None
        self._consumer: Consumer | None = None
        self._buffered: deque[ResponseChunk] | None = None
        self._buffered_bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    # The producer's side.

    def push(self, chunk: ResponseChunk) -> None:
        """Hand over the next piece; ignored once the stream has ended."""
        if self.is_ended:
            return
        if chunk.is_last:
            self.is_ended = True
            self.on_cancel = None
        if self._consumer is not None:
            self._consumer.on_chunk(chunk)
        else:
            self._buffer(chunk)

    def fail(self, error: ServingError) -> None:
        """End the stream with an error; ignored once it has ended."""
        if self.is_ended:
            return
        self.is_ended = True
        self.on_cancel = None
        self.error = error
        if self._consumer is not None:
            self._consumer.on_error(error)
        else:
            self._wake()

    def _buffer(self, chunk: ResponseChunk) -> None:
        if self._buffered is None:
            self._buffered = deque()
        self._buffered.append(chunk)
        self._buffered_bytes += len(chunk.body)
        self._wake()
        if self._buffered_bytes > MAX_BUFFERED_BYTES and not self.is_ended:
            on_cancel = self.on_cancel
            self.fail(ServingError("The answer was not read in time.", ErrorKind.CANCELLED))
            if on_cancel is not None:
                on_cancel()

    # The consumer's side.

    def attach(self, consumer: Consumer) -> None:
        """From here on `consumer` gets every event, those that already came first."""
        while self._buffered:
            consumer.on_chunk(self._buffered.popleft())
            if isinstance(self.error, RequestCancelled):
                return  # it has left while it read
        self._buffered_bytes = 0
        if self.error is not None:
            consumer.on_error(self.error)
        self._consumer = consumer

    def cancel(self) -> None:
        """The consumer wants nothing more. Harmless after the end."""
        if self.is_ended:
            return
        on_cancel, self.on_cancel = self.on_cancel, None
        self.is_ended = True
        self.error = RequestCancelled()
        self._consumer = None
        self._buffered = None
        self._wake()
        if on_cancel is not None:
            on_cancel()

    def __aiter__(self) -> AsyncIterator[ResponseChunk]:
        """The chunks in order.

        Leaving the iteration early does not cancel: the owner of the stream calls `cancel`.
        """
        return self

    async def __anext__(self) -> ResponseChunk:
        """Raises the stream's error where it failed."""
        while not self._buffered:
            if self.error is not None:
                raise self.error
            if self.is_ended:
                raise StopAsyncIteration
            await self._wait_event()
        chunk = self._buffered.popleft()
        self._buffered_bytes -= len(chunk.body)
        return chunk

    async def wait_complete(self) -> list[ResponseChunk]:
        """Every chunk of the answer, once it is complete.

        Cancels the job if the caller is cancelled.
        """
        chunks: list[ResponseChunk] = []
        try:
            # Not by iterating: an asynchronous generator costs a plain answer a third of its way
            # through here.
            while True:
                if self._buffered:
                    chunks.extend(self._buffered)
                    self._buffered.clear()
                    self._buffered_bytes = 0
                if self.error is not None:
                    raise self.error
                if self.is_ended:
                    return chunks
                await self._wait_event()
        finally:
            self.cancel()

    def _wait_event(self) -> asyncio.Future[None]:
        """Done when something has happened that the one reader does not know yet."""
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():  # else the reader was cancelled
                waiter.set_result(None)
