"""What a client asked and what the model answered, with no trace of the door it came through.

Bodies and header values stay the bytes that arrived: the frontend never looks into them, so nothing
is decoded, copied or re-encoded between a client's socket and the worker's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ts.protocol.messages import Part, PredictRequest

Header = tuple[bytes, bytes]


# Headers that TorchServe's frontend adds and handlers read (contract, HTTP section 3).
PREDICT_HEADER: Header = (b"explain", b"False")
EXPLAIN_HEADER: Header = (b"explain", b"True")
DESCRIBE_HEADER: Header = (b"describe", b"True")


class InferenceRequest(PredictRequest):
    """One request for one model, valid by construction; it is what goes on the wire, unchanged.

    id:      the text that names the request to the client, the worker and the logs; ASCII.
    headers: what the handler sees as request headers, the client's spelling; a later one wins.
    parts:   the named inputs in the client's order.
    """

    __slots__ = ()


class ResponseChunk(NamedTuple):
    """One piece of an answer. A plain answer is a single piece with `is_last`.

    status, reason: what the handler chose for this request; an HTTP status, reason b"" if not set.
    content_type:   b"" if the handler did not set one.
    headers:        response headers set by the handler, without content-type.
    is_last:        nothing follows.
    """

    status: int
    reason: bytes
    content_type: bytes
    headers: Sequence[Header]
    body: bytes | bytearray | memoryview
    is_last: bool


__all__ = [
    "DESCRIBE_HEADER",
    "EXPLAIN_HEADER",
    "PREDICT_HEADER",
    "Header",
    "InferenceRequest",
    "Part",
    "ResponseChunk",
]
