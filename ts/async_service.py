"""The asynchronous worker: each message is a task of its own on one event loop.

One thread does everything. The loop watches the connection; every batch that has come becomes a
task that awaits the handler and writes its reply, whole, when it is done. So replies come in the
order of completion, and the frontend tells them apart by their request ids. A cancelled request
ends by the cancellation of its task, at the handler's next await.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Any

from ts.generators import drain_async, has_streams
from ts.protocol.frames import Buffer
from ts.protocol.messages import PONG, Cancel, LoadModel, Ping, PredictRequest
from ts.service import Service, cancelled_reply, failure_reply, ids_of, raised_reply
from ts.transports.connection import TRIM_AFTER_S, FrontendConnection, FrontendDisconnected

logger = logging.getLogger(__name__)

# How long handlers may take to end after the frontend has gone.
CANCEL_GRACE_S = 1.0


async def predict(service: Service, batch: list[PredictRequest]) -> list[Buffer]:
    """The reply to a batch, as buffers; the message has a context of its own."""
    context = service.context.copy_for_message()
    data, request_ids = service.open_batch(batch, context)
    started_s = time.perf_counter()
    try:
        ret = service._entry_point(data, context)
        if not has_streams(ret):  # an asynchronous generator is no awaitable
            ret = await ret
        if has_streams(ret):
            ret = await drain_async(ret, request_ids, context)
    except Exception as error:
        return raised_reply(request_ids, error, context)
    return service.batch_reply(ret, request_ids, context, started_s)


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
        self._tasks: dict[asyncio.Task[None], list[PredictRequest]] = {}
        self._cancelled: set[str] = set()  # of the running requests
        service.set_cancellations(self)
        self._is_ending = False
        self._trimmer: asyncio.TimerHandle | None = None
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
            request_ids = ids_of(batch)
            if self.covers(request_ids.values()):
                reply = cancelled_reply(request_ids)
            else:
                # The handler's own doing, an aborted generation for instance; the client waits.
                reply = failure_reply(request_ids, error)
        if self._may_answer:
            self._connection.send(reply)
            self._trim_later()

    def _trim_later(self) -> None:
        if self._trimmer is None and self._connection.has_garbage:
            self._trimmer = asyncio.get_running_loop().call_later(TRIM_AFTER_S, self._trim)

    def _trim(self) -> None:
        self._trimmer = None
        if self._connection.trim():
            self._trim_later()

    def covers(self, request_ids: Collection[str]) -> bool:
        """Whether nobody waits for any of these any more."""
        return all(request_id in self._cancelled for request_id in request_ids)

    def _dispatch(self) -> None:
        while (command := self._connection.next_command()) is not None:
            if isinstance(command, LoadModel):
                raise ValueError("Invalid command: a model is loaded already")
            if isinstance(command, Cancel):
                self._cancel(command.id)
            elif isinstance(command, Ping):
                self._connection.send([PONG])
            else:
                task = asyncio.get_running_loop().create_task(self.predict(command))
                self._tasks[task] = command
                task.add_done_callback(self._forget)

    def _cancel(self, request_id: bytes) -> None:
        for task, batch in self._tasks.items():
            if any(request.id == request_id for request in batch):
                self._cancelled.add(request_id.decode())
                if self.covers(ids_of(batch).values()):
                    task.cancel()
                return

    def _forget(self, task: asyncio.Task[Any]) -> None:
        batch = self._tasks.pop(task)
        try:
            if task.cancelled():
                # Before it had begun: nothing in it could answer.
                if self._may_answer and not self._is_ending:
                    self._connection.send(cancelled_reply(ids_of(batch)))
            # An end of the process (SystemExit) has already left the loop by itself.
            elif isinstance(error := task.exception(), Exception):
                self._fail(error)
        except FrontendDisconnected as error:
            self._fail(error)
        if self._cancelled:
            self._cancelled.difference_update(ids_of(batch).values())

    async def _cancel_all(self) -> None:
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_GRACE_S)
