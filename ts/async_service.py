"""The asynchronous worker: each message is a task of its own on one event loop.

One thread does everything. The loop watches the connection; every batch that has come becomes a
task that awaits the handler and writes its reply, whole, when it is done. So replies come in the
order of completion, and the frontend tells them apart by their request ids.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from ts.protocol.frames import Buffer
from ts.protocol.messages import LoadModel, PredictRequest
from ts.service import Service, batch_reply, failure_reply
from ts.transports.connection import FrontendConnection

logger = logging.getLogger(__name__)

# How long handlers may take to end after the frontend has gone.
CANCEL_GRACE_S = 1.0


async def predict(service: Service, batch: list[PredictRequest]) -> list[Buffer]:
    """The reply to a batch, as buffers; the message has a context of its own."""
    context = service.context.copy_for_message()
    data, request_ids = service.open_batch(batch, context)
    started_s = time.perf_counter()
    try:
        ret = await service._entry_point(data, context)
    except Exception as error:
        return failure_reply(request_ids, error)
    return batch_reply(ret, request_ids, context, started_s)


class AsyncService:
    """Serves one connection until the frontend closes it.

    may_answer: whether this process sends replies at all (only rank 0 does).
    """

    def __init__(
        self, service: Service, connection: FrontendConnection, may_answer: bool = True
    ) -> None:
        self._service = service
        self._connection = connection
        self._may_answer = may_answer
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ending = False
        self._fail: Callable[[Exception], None]

    async def run(self) -> None:
        """Raises FrontendDisconnected at the end, or what went wrong with the connection."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            try:
                self._connection.receive_ready()
                self._dispatch()
            except Exception as error:
                loop.remove_reader(self._connection)
                fail(error)

        def fail(error: Exception) -> None:
            if not ended.done():
                ended.set_exception(error)

        self._fail = fail
        self._dispatch()  # what came together with the load command
        loop.add_reader(self._connection, read)
        try:
            await ended
        finally:
            loop.remove_reader(self._connection)
            await self._cancel_all()

    async def predict(self, batch: list[PredictRequest]) -> None:
        """Answer one message."""
        try:
            reply = await predict(self._service, batch)
        except asyncio.CancelledError as error:
            if self._is_ending:
                raise
            # The handler's own doing, an aborted generation for instance; the client still waits.
            reply = failure_reply(
                {index: request.id.decode() for index, request in enumerate(batch)}, error
            )
        if self._may_answer:
            self._connection.send(reply)

    def _dispatch(self) -> None:
        while (command := self._connection.next_command()) is not None:
            if isinstance(command, LoadModel):
                raise ValueError("Invalid command: a model is loaded already")
            task = asyncio.get_running_loop().create_task(self.predict(command))
            self._tasks.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # An end of the process (SystemExit) has already left the loop by itself.
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._fail(error)

    async def _cancel_all(self) -> None:
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_GRACE_S)
