"""The codec under the names that scripts and handlers import from TorchServe.

The worker itself reads with `messages.CommandReader`; what it writes is made by `response_buffers`.
"""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ts.protocol.messages import Buffer, Prediction, encode_load_reply, encode_predict_reply

logger = logging.getLogger(__name__)

STREAM_MARKER = "ts_stream_next"
UNSUPPORTED_OUTPUT = "Unsupported model output data type."
_INT = struct.Struct("!i")


def retrieve_msg(conn: Any) -> tuple[bytearray, Any]:
    """One command from a socket: `(b"L", dict)` or `(b"I", list of dicts)`.

    One `recv` per field, as the callers' fakes expect. Raises ValueError for another command.
    """
    command = _receive(conn, 1)
    if command == b"L":
        return command, _retrieve_load(conn)
    if command == b"I":
        return command, _retrieve_batch(conn)
    raise ValueError(f"Invalid command: {command!r}")


def create_load_model_response(code: int, message: str) -> bytearray:
    return bytearray(encode_load_reply(code, message))


def create_predict_response(
    ret: Sequence[Any] | None,
    req_id_map: Mapping[int, str],
    message: str,
    code: int,
    context: Any = None,
    ts_stream_next: bool = False,
) -> bytearray | None:
    """One whole reply; None on a rank that does not speak."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        logger.info("skip sending response at rank %s", os.environ["LOCAL_RANK"])
        return None
    buffers = response_buffers(ret, req_id_map, message, code, context, ts_stream_next)
    return bytearray().join(buffers)


def encode_response_headers(resp_hdr_map: Mapping[str, str]) -> bytearray:
    encoded = bytearray(_INT.pack(len(resp_hdr_map)))
    for key, value in resp_hdr_map.items():
        for text in (key.encode(), value.encode()):
            encoded += _INT.pack(len(text)) + text
    return encoded


def response_buffers(
    ret: Sequence[Any] | None,
    req_id_map: Mapping[int, str],
    message: str,
    code: int,
    context: Any = None,
    is_intermediate: bool = False,
) -> list[Buffer]:
    """The reply to a batch, ready to be written.

    ret: one output per request in the order of `req_id_map`; None for a batch that failed.
    An output that has no bytes turns the whole reply into a 503.
    """
    if ret is None:
        return encode_predict_reply(code, message, _failed(req_id_map, code))
    try:
        if context is None:
            predictions = [
                Prediction(request_id.encode(), b"", code, b"", [], output_bytes(ret[index]))
                for index, request_id in req_id_map.items()
            ]
        else:
            predictions = [
                _prediction(index, request_id, ret[index], context, is_intermediate)
                for index, request_id in req_id_map.items()
            ]
    except (TypeError, ValueError, RecursionError) as error:
        logger.warning("A model's output cannot be sent: %s", error, exc_info=True)
        return encode_predict_reply(503, UNSUPPORTED_OUTPUT, _failed(req_id_map, 503))
    return encode_predict_reply(code, message, predictions)


def _failed(req_id_map: Mapping[int, str], code: int) -> list[Prediction]:
    return [
        Prediction(request_id.encode(), b"", code, b"", [], b"error")
        for request_id in req_id_map.values()
    ]


def _prediction(
    index: int, request_id: str, output: Any, context: Any, is_intermediate: bool
) -> Prediction:
    processor = context.request_processor[index]
    headers = processor.get_response_headers()
    if is_intermediate:
        headers[STREAM_MARKER] = "true"
    elif context.stopping_criteria:
        is_done = context.stopping_criteria[index](output)
        if is_done is not None:
            headers[STREAM_MARKER] = "false" if is_done else "true"
    elif headers and headers.get(STREAM_MARKER) == "true":
        headers[STREAM_MARKER] = "false"
    phrase = processor.get_response_status_phrase()
    encoded: list[tuple[bytes, bytes]] = []
    content_type = b""
    if headers:
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        content_type = headers.get("content-type", "").encode()
    return Prediction(
        request_id.encode(),
        content_type,
        processor.get_response_status_code(),
        phrase.encode() if phrase else b"",
        encoded,
        output_bytes(output),
    )


def output_bytes(output: Any) -> bytes | bytearray:
    """bytes as they are, text as UTF-8, a Tensor as `torch.save` writes it, else indented JSON.

    Raises TypeError, ValueError, RecursionError for what has no JSON.
    """
    if isinstance(output, bytes | bytearray):
        return output
    if isinstance(output, str):
        return output.encode()
    # A handler that returns a tensor has imported torch.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(output, torch.Tensor):
        file = io.BytesIO()
        torch.save(output, file)
        return file.getvalue()
    return json.dumps(output, indent=2).encode()


def _receive(conn: Any, count: int) -> bytearray:
    """`count` bytes, or all that a single `recv` gave if that was more (fakes do so)."""
    data = bytearray()
    while len(data) < count:
        piece = conn.recv(count - len(data))
        if len(piece) == 0:
            logger.info("Frontend disconnected.")
            sys.exit(0)
        data += piece
    return data


def _receive_int(conn: Any) -> int:
    (value,) = _INT.unpack(_receive(conn, 4)[:4])
    return int(value)


def _receive_field(conn: Any) -> bytearray:
    size = _receive_int(conn)
    return _receive(conn, size) if size > 0 else bytearray()


def _retrieve_load(conn: Any) -> dict[str, Any]:
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
    message["limitMaxImagePixels"] = bool(_receive(conn, 1)[0])
    return message


def _retrieve_batch(conn: Any) -> list[dict[str, Any]]:
    batch = []
    while (size := _receive_int(conn)) != -1:
        request: dict[str, Any] = {"requestId": _receive(conn, size) if size else bytearray()}
        headers = []
        while (size := _receive_int(conn)) != -1:
            name = _receive(conn, size) if size else bytearray()
            headers.append({"name": name, "value": _receive_field(conn)})
        request["headers"] = headers
        parameters = []
        while (size := _receive_int(conn)) != -1:
            name = (_receive(conn, size) if size else bytearray()).decode()
            content_type = _receive_field(conn).decode()
            value = _receive_field(conn)
            parameters.append(
                {
                    "name": name,
                    "contentType": content_type,
                    "value": decode_value(content_type, value),
                }
            )
        request["parameters"] = parameters
        batch.append(request)
    return batch


IS_DECODING = os.environ.get("TS_DECODE_INPUT_REQUEST", "true") == "true"


def decode_value(content_type: str, value: bytearray) -> Any:
    """What the handler gets for a part: JSON's object, text, or the bytearray itself."""
    if not IS_DECODING or not content_type:
        return value
    try:
        if content_type == "application/json":
            return json.loads(value)
        if content_type.startswith("text"):
            return value.decode()
    except ValueError as error:
        logger.warning("An input of type %s cannot be decoded: %s", content_type, error)
    return value


def send_intermediate_predict_response(
    ret: Sequence[Any], req_id_map: Mapping[int, str], message: str, code: int, context: Any = None
) -> None:
    """The old place of `ts.handler_utils.utils.send_intermediate_predict_response`."""
    context.cl_socket.sendall(
        create_predict_response(ret, req_id_map, message, code, context, ts_stream_next=True)
    )
