"""The codec under its historical names, for code that imports them.

`retrieve_msg` asks the connection for each field by itself, exactly once when the whole field
comes; tests and simulators rely on that. The worker itself reads with `messages.CommandReader` and
writes what `ts.protocol.batch_reply` makes.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ts.protocol.batch_reply import ResponseContext, encode_batch_reply, encode_headers
from ts.protocol.messages import LOAD_COMMAND, PREDICT_COMMAND, encode_load_reply
from ts.protocol.values import decode_value, is_decoding_wanted

logger = logging.getLogger(__name__)


def retrieve_msg(conn: Any) -> tuple[bytearray, Any]:
    """Read one command: its byte, and a dict (load) or a list of request dicts (predict).

    Ends the process with status 0 when the frontend has closed the connection.
    Raises ValueError for an unknown command.
    """
    command = _receive(conn, 1)
    if command == LOAD_COMMAND:
        return command, _receive_load(conn)
    if command == PREDICT_COMMAND:
        return command, _receive_batch(conn)
    raise ValueError(f"Invalid command: {bytes(command)!r}")


def create_load_model_response(code: int, message: str) -> bytearray:
    """The reply to a load command."""
    return bytearray(encode_load_reply(code, message))


def create_predict_response(
    ret: Sequence[Any] | None,
    req_id_map: Mapping[int, str],
    message: str,
    code: int,
    context: ResponseContext | None = None,
    ts_stream_next: bool = False,
) -> bytearray | None:
    """The reply to a batch; None on every rank but 0, which alone answers."""
    rank = os.environ.get("LOCAL_RANK", "0")
    if rank != "0":
        logger.debug("skip sending response at rank %s", rank)
        return None
    buffers = encode_batch_reply(ret, req_id_map, message, code, context, ts_stream_next)
    return bytearray().join(buffers)


def encode_response_headers(resp_hdr_map: Mapping[str, str]) -> bytearray:
    """The number of headers, then each name and value."""
    return bytearray(encode_headers(resp_hdr_map))


def send_intermediate_predict_response(
    ret: Sequence[Any],
    req_id_map: Mapping[int, str],
    message: str,
    code: int,
    context: Any = None,
) -> None:
    """Deprecated: use `ts.handler_utils.utils.send_intermediate_predict_response`."""
    warnings.warn(
        "ts.protocol.otf_message_handler.send_intermediate_predict_response has moved to "
        "ts.handler_utils.utils",
        DeprecationWarning,
        stacklevel=2,
    )
    reply = create_predict_response(ret, req_id_map, message, code, context, True)
    if reply is not None:
        context.cl_socket.sendall(reply)


def _receive_load(conn: Any) -> dict[str, Any]:
    message: dict[str, Any] = {
        "modelName": _receive_field(conn),
        "modelPath": _receive_field(conn),
        "batchSize": _receive_int(conn),
        "handler": _receive_field(conn),
    }
    gpu = _receive_int(conn)
    if gpu >= 0:
        message["gpu"] = gpu
    message["envelope"] = _receive_field(conn)
    message["limitMaxImagePixels"] = _receive(conn, 1) != b"\0"
    return message


def _receive_batch(conn: Any) -> list[dict[str, Any]]:
    is_decoding = is_decoding_wanted()
    batch = []
    while (size := _receive_int(conn)) != -1:
        request_id = _receive(conn, size)
        headers = []
        while (size := _receive_int(conn)) != -1:
            headers.append({"name": _receive(conn, size), "value": _receive_field(conn)})
        parameters = []
        while (size := _receive_int(conn)) != -1:
            name = _receive(conn, size).decode()
            content_type = _receive_field(conn).decode()
            value = _receive_field(conn)
            parameters.append(
                {
                    "name": name,
                    "contentType": content_type,
                    "value": decode_value(content_type, value) if is_decoding else value,
                }
            )
        batch.append({"requestId": request_id, "headers": headers, "parameters": parameters})
    return batch


def _receive_field(conn: Any) -> bytearray:
    return _receive(conn, _receive_int(conn))


def _receive_int(conn: Any) -> int:
    return int.from_bytes(_receive(conn, 4)[:4], "big", signed=True)


def _receive(conn: Any, size: int) -> bytearray:
    """`size` bytes, or more if the connection hands out more at once: all of them are kept."""
    data = bytearray()
    while len(data) < size:
        piece = conn.recv(size - len(data))
        if not piece:
            logger.info("Frontend disconnected.")
            sys.exit(0)
        data += piece
    return data
