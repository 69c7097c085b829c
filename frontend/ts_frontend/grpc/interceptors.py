"""What every gRPC call passes: the key, the error table of its service, the access log.

The servicers behind raise `ServingError`s; no line of theirs speaks of status codes. A response
stream is written with `context.write` in the servicer's own coroutine, never yielded, so that a
client that leaves is heard of by the frame that owns the job.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from ts_frontend.core.errors import ServingError
from ts_frontend.grpc.retry import retry_metadata
from ts_frontend.grpc.service import Status

logger = logging.getLogger(__name__)

Authorize = Callable[[bytes | None], None]
"""Gets the value of the `authorization` metadata; raises ServingError."""

OnFinished = Callable[[str, str, int, float], None]
"""Gets the client ("/127.0.0.1:64003"), "package.Service/Method", the status and the seconds."""

_Behaviour = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Any]]

# gRPC allows 8 KiB of trailers by default, and writes some characters as twelve.
MAX_QUOTED = 300

UNREADABLE = Status(
    grpc.StatusCode.INVALID_ARGUMENT, "The request is no message of the kind that this call takes."
)
STOPPING = Status(grpc.StatusCode.UNAVAILABLE, "The server is stopping.")
FAULT = Status(grpc.StatusCode.INTERNAL, "Internal server error; the server's log has the details.")


class Doorkeeper(grpc.aio.ServerInterceptor):
    """Stands in front of all services of one server.

    status_of:  error table by service name.
    authorize:  None: no key is asked for.
    open_services: need no key.
    """

    def __init__(
        self,
        status_of: Mapping[str, Callable[[ServingError], Status]],
        authorize: Authorize | None = None,
        open_services: frozenset[str] = frozenset(),
        on_finished: OnFinished | None = None,
    ) -> None:
        self._status_of = status_of
        self._authorize = authorize
        self._open_services = open_services
        self._on_finished = on_finished
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._stopping: asyncio.Future[None] | None = None  # made by the first stream of requests
        self._is_stopping = False

    def stop(self) -> None:
        """End the calls that wait for their client's next message: it may never come, and what came
        before is answered.
        """
        self._is_stopping = True
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(None)

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method: str = handler_call_details.method
        service = method[1:].rpartition("/")[0]
        if self._authorize is not None and service not in self._open_services:
            try:
                self._authorize(_authorization(handler_call_details))
            except ServingError as error:
                return _refusal(error.message)
        guarded = self._guarded.get(method)
        if guarded is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # no such method
            guarded = self._guarded[method] = self._guard(method[1:], service, handler)
        return guarded

    def _guard(
        self, method: str, service: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        serializers = (_reader(handler.request_deserializer), handler.response_serializer)
        if handler.unary_unary:
            call = self._call(method, service, handler.unary_unary)
            return grpc.unary_unary_rpc_method_handler(call, *serializers)
        if handler.unary_stream:
            call = self._call(method, service, _written(handler.unary_stream))
            return grpc.unary_stream_rpc_method_handler(call, *serializers)
        if handler.stream_unary:
            call = self._call(method, service, self._reading(handler.stream_unary))
            return grpc.stream_unary_rpc_method_handler(call, *serializers)
        call = self._call(method, service, self._reading(_written(handler.stream_stream)))
        return grpc.stream_stream_rpc_method_handler(call, *serializers)

    def _reading(self, behaviour: Any) -> _Behaviour:
        """`behaviour`, whose requests end with ServerStopping once the server stops."""

        async def read(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            return await behaviour(self._until_stopped(requests), context)

        return read

    async def _until_stopped(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_future()
        while not self._is_stopping:
            reading = asyncio.ensure_future(anext(requests, None))
            try:
                await asyncio.wait((reading, self._stopping), return_when=asyncio.FIRST_COMPLETED)
            except BaseException:
                reading.cancel()
                raise
            if not reading.done():
                # Left to end with the call: the library is not asked to take a read back.
                reading.add_done_callback(_forget)
                break
            request = reading.result()
            if request is None:
                return
            if request is _NO_MESSAGE:
                raise Unreadable
            yield request
        raise ServerStopping

    def _call(self, method: str, service: str, behaviour: Any) -> Any:
        status_of = self._status_of.get(service, _unexpected)

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            started_s = time.monotonic()
            code = grpc.StatusCode.OK
            try:
                if request is _NO_MESSAGE:
                    raise Unreadable
                return await behaviour(request, context)
            except Unreadable:
                code = UNREADABLE.code
                await context.abort(*UNREADABLE)
            except ServerStopping:
                code = STOPPING.code
                await context.abort(*STOPPING)
            except ServingError as error:
                code, text = status_of(error)
                text = _shortened(text)
                await context.abort(code, text, retry_metadata(error, code, text))
            except grpc.aio.AbortError:
                code = _as_code(context.code())
                raise
            except asyncio.CancelledError:
                left_s = context.time_remaining()
                is_late = left_s is not None and left_s <= 0
                code = grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
                raise
            except Exception:
                logger.exception("A call of %s failed by a fault of the server.", method)
                code = FAULT.code
                await context.abort(*FAULT)
            finally:
                if self._on_finished is not None:
                    seconds = time.monotonic() - started_s
                    self._on_finished(remote(context.peer()), method, code.value[0], seconds)

        return call


_NO_MESSAGE = object()  # stands for a request that could not be read


class Unreadable(Exception):
    """The bytes of a request are no message of its method."""


def _reader(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """`deserializer`, which gives `_NO_MESSAGE` in place of an error: what is raised there the
    library tells the client in Python's words as UNKNOWN, and logs with a traceback.
    """
    if deserializer is None:
        return None

    def read(body: bytes) -> Any:
        try:
            return deserializer(body)
        except DecodeError:
            return _NO_MESSAGE

    return read


class ServerStopping(Exception):
    """No further message of a call is waited for."""


def _forget(reading: asyncio.Future[Any]) -> None:
    """Take note of how a read ended, which nobody waits for."""
    if not reading.cancelled():
        reading.exception()


@functools.lru_cache(1024)  # a client asks more than once
def remote(peer: str) -> str:
    """A client's address as the access log writes it: `ipv4:127.0.0.1:64003` becomes
    `/127.0.0.1:64003`.
    """
    family, _, address = peer.partition(":")
    return f"/{unquote(address)}" if family in ("ipv4", "ipv6") else family or "unknown"


def _authorization(details: grpc.HandlerCallDetails) -> bytes | None:
    for key, value in details.invocation_metadata:
        if key == "authorization":
            return value.encode() if isinstance(value, str) else value
    return None


def _refusal(text: str) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, text)

    # The streaming form fits every method: it does not wait for the request that a client of the
    # others may never finish.
    return grpc.stream_stream_rpc_method_handler(refuse)


def _written(behaviour: Any) -> _Behaviour:
    """A streaming behaviour as a coroutine, if it is a generator (those of the reflection are)."""

    async def write(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        answer = behaviour(request, context)
        if not hasattr(answer, "__aiter__"):
            await answer
            return
        async for message in answer:
            await context.write(message)

    return write


def _shortened(text: str) -> str:
    """A text may quote what the client sent; one over some kilobytes would not reach it at all."""
    if len(text) <= 2 * MAX_QUOTED:
        return text
    return f"{text[:MAX_QUOTED]} ... {text[-MAX_QUOTED:]}"


def _unexpected(error: ServingError) -> Status:
    return Status(grpc.StatusCode.INTERNAL, error.message)


def _as_code(code: Any) -> grpc.StatusCode:
    """`context.code()` is a number or a StatusCode, by the version of grpcio."""
    if isinstance(code, grpc.StatusCode):
        return code
    codes = (known for known in grpc.StatusCode if known.value[0] == code)
    return next(codes, grpc.StatusCode.UNKNOWN)
