"""From what a handler returned to the reply frames: bodies, statuses, headers, streaming marks."""

from __future__ import annotations

import functools
import io
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ts.protocol.frames import EMPTY, END, SMALL_INTS, Buffer, encode_field, encode_int, pack_int
from ts.protocol.messages import LARGE_BODY_BYTES, PLAIN_ANSWER, SUCCESS_MESSAGE

logger = logging.getLogger(__name__)

STREAM_HEADER = "ts_stream_next"
UNSUPPORTED_OUTPUT = "Unsupported model output data type."

_SUCCESS_HEAD = pack_int(200) + encode_field(SUCCESS_MESSAGE.encode())
_ERROR_BODY = encode_field(b"error")


class ResponseContext(Protocol):
    """The part of `ts.context.Context` that decides how an item is answered."""

    stopping_criteria: Any

    def get_response_status(self, idx: int) -> tuple[int, str | None]: ...

    def get_response_content_type(self, idx: int) -> str | None: ...

    def get_response_headers(self, idx: int) -> dict[str, str]: ...

    def set_response_header(self, idx: int, key: str, value: str) -> None: ...


class UnsupportedOutput(Exception):
    """An item that the handler returned cannot be turned into bytes."""


def encode_batch_reply(
    ret: Sequence[Any] | None,
    req_id_map: Mapping[int, str],
    message: str,
    code: int,
    context: ResponseContext | None = None,
    ts_stream_next: bool = False,
) -> list[Buffer]:
    """The reply to a batch, as buffers to be written in this order.

    ret: one item per request; None says that the batch failed with `code` and `message`.
    ts_stream_next: these are parts of answers of which more follows.

    Items that have no bytes turn the whole batch into a 503. A stopping criterion of the handler
    may raise anything.
    """
    if ret is None:
        return encode_failure(req_id_map, message, code)
    try:
        return _encode_items(ret, req_id_map, message, code, context, ts_stream_next)
    except UnsupportedOutput:
        logger.warning(
            "The handler's output for %s cannot be sent:",
            ", ".join(req_id_map.values()),
            exc_info=True,
        )
        return encode_failure(req_id_map, UNSUPPORTED_OUTPUT, 503)


def encode_failure(req_id_map: Mapping[int, str], message: str, code: int) -> list[Buffer]:
    """The reply to a batch that failed; TorchServe's frontend wants an entry for each request."""
    pieces = [pack_int(code), encode_field(message.encode("utf-8", "replace"))]
    for request_id in req_id_map.values():
        pieces += (encode_field(request_id.encode()), EMPTY, pack_int(code), EMPTY, EMPTY)
        pieces.append(_ERROR_BODY)
    pieces.append(END)
    return [b"".join(pieces)]


def _encode_items(
    ret: Sequence[Any],
    req_id_map: Mapping[int, str],
    message: str,
    code: int,
    context: ResponseContext | None,
    ts_stream_next: bool,
) -> list[Buffer]:
    # Flat, because it runs for every request.
    buffers: list[Buffer] = []
    pieces: list[Buffer] = []
    add = pieces.append
    if code == 200 and message == SUCCESS_MESSAGE:
        add(_SUCCESS_HEAD)
    else:
        add(_reply_head(code, message))
    criteria = None if context is None else context.stopping_criteria
    # Others than ours (a test's, for one) need not have it.
    is_plain = getattr(context, "has_plain_response", None)
    if ts_stream_next or criteria:
        is_plain = None
    small = SMALL_INTS
    body: Buffer
    for idx, request_id in req_id_map.items():
        item = ret[idx]
        kind = type(item)
        body = item if kind is bytes or kind is bytearray else encode_item(item)

        add(encode_field(request_id.encode()))
        if context is None:
            add(EMPTY)
            add(encode_int(code))
            add(EMPTY)
            add(EMPTY)
        elif is_plain is not None and is_plain(idx):
            add(PLAIN_ANSWER)
        else:
            headers = context.get_response_headers(idx)
            if ts_stream_next or criteria or headers:
                _mark_stream(context, idx, item, headers, criteria, ts_stream_next)
                headers = context.get_response_headers(idx)
            content_type = context.get_response_content_type(idx)
            add(encode_field(content_type.encode()) if content_type else EMPTY)
            status, phrase = context.get_response_status(idx)
            add(encode_int(status))
            add(encode_field(phrase.encode()) if phrase else EMPTY)
            if not headers:
                add(EMPTY)
            elif headers == _MORE_FOLLOWS:
                add(_MORE_FOLLOWS_FIELDS)
            else:
                add(encode_headers(headers))

        size = len(body)
        add(small[size] if size < 1024 else pack_int(size))
        if size < LARGE_BODY_BYTES:
            add(body)
        else:
            buffers.append(b"".join(pieces))
            buffers.append(body)
            pieces.clear()
    add(END)
    buffers.append(b"".join(pieces))
    return buffers


@functools.lru_cache(maxsize=64)
def _reply_head(code: int, message: str) -> bytes:
    """Code and message; a stream repeats them with every piece."""
    return pack_int(code) + encode_field(message.encode("utf-8", "replace"))


def _mark_stream(
    context: ResponseContext,
    idx: int,
    item: Any,
    headers: Mapping[str, str],
    criteria: Sequence[Callable[[Any], Any]] | None,
    ts_stream_next: bool,
) -> None:
    """Say whether more of this answer follows; a plain answer gets no mark at all."""
    if ts_stream_next:
        context.set_response_header(idx, STREAM_HEADER, "true")
    elif criteria:
        is_finished = criteria[idx](item)
        if is_finished is not None:
            context.set_response_header(idx, STREAM_HEADER, "false" if is_finished else "true")
    elif headers.get(STREAM_HEADER) == "true":
        context.set_response_header(idx, STREAM_HEADER, "false")


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """The number of headers, then each name and value."""
    pieces = [encode_int(len(headers))]
    for name, value in headers.items():
        pieces.append(encode_field(str(name).encode()))
        pieces.append(encode_field(str(value).encode()))
    return b"".join(pieces)


# What the pieces of most streams have and nothing else.
_MORE_FOLLOWS = {STREAM_HEADER: "true"}
_MORE_FOLLOWS_FIELDS = encode_headers(_MORE_FOLLOWS)


def encode_item(item: Any) -> Buffer:
    """The bytes of one answer: as it is, UTF-8, a saved tensor, or JSON.

    Raises UnsupportedOutput for what is none of these.
    """
    try:
        if isinstance(item, str):
            return item.encode()
        if isinstance(item, (bytes, bytearray)):
            return item
        # Whoever made a tensor has imported torch; nobody else shall wait for it.
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(item, torch.Tensor):
            file = io.BytesIO()
            torch.save(item, file)
            return file.getbuffer()
        return json.dumps(item, indent=2).encode()
    except MemoryError:
        raise
    except Exception as error:
        raise UnsupportedOutput(f"{type(item).__name__}: {error}") from error
