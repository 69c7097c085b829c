"""A predict reply as bytes, for workers that tests play: any ids, statuses and headers in it.

The server's own workers encode what a handler returned (`ts.protocol.batch_reply`).
"""

from __future__ import annotations

from collections.abc import Iterable

from ts.protocol.frames import END, Buffer, encode_field, encode_int, pack_int
from ts.protocol.messages import LARGE_BODY_BYTES, Prediction


def encode_predict_reply(
    code: int, message: str, predictions: Iterable[Prediction]
) -> list[Buffer]:
    """The reply as buffers to be written in this order; large bodies as in `encode_predict`."""
    buffers: list[Buffer] = []
    pieces: list[Buffer] = [pack_int(code), encode_field(message.encode())]
    add = pieces.append
    for request_id, content_type, status, reason, headers, body in predictions:
        add(encode_int(len(request_id)))
        add(request_id)
        add(encode_int(len(content_type)))
        add(content_type)
        add(pack_int(status))
        add(encode_int(len(reason)))
        add(reason)
        add(encode_int(len(headers)))
        for name, value in headers:
            add(encode_int(len(name)))
            add(name)
            add(encode_int(len(value)))
            add(value)
        size = len(body)
        add(encode_int(size))
        if size < LARGE_BODY_BYTES:
            add(body)
        else:
            buffers.append(b"".join(pieces))
            buffers.append(body)
            pieces.clear()
    add(END)
    buffers.append(b"".join(pieces))
    return buffers
