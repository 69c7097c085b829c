"""An inference request out of an HTTP request, and its answer back: what all HTTP dialects share
whose bodies go to the handler as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from ts.protocol.header_block import HeaderBlock
from ts.protocol.messages import new_tuple
from ts_frontend.core.errors import ServingError
from ts_frontend.core.inference import (
    EXPLAIN_HEADER,
    PREDICT_HEADER,
    Header,
    InferenceRequest,
    Part,
    ResponseChunk,
)
from ts_frontend.data_plane import DataPlane
from ts_frontend.dialects.errors import answer_error
from ts_frontend.http.multipart import FormLimits, parse_form, parse_multipart
from ts_frontend.http.request import HttpRequest


def send(
    data: DataPlane,
    request: HttpRequest,
    name: str,
    version: str | None,
    inference: InferenceRequest,
) -> None:
    """Put `inference` on its way and let its answer be written when it comes.

    The client's leaving cancels it.
    """
    stream = data.predict(name, version, inference, arrived_s=request.arrived_s)
    request.on_disconnect = stream.cancel
    stream.attach(Answer(request))


def to_inference_request(
    request: HttpRequest,
    *,
    explain: bool = False,
    url_path: str | None = None,
    with_query: bool = False,
    max_parts: int = 1000,
) -> InferenceRequest:
    """What the handler gets: the headers as sent plus TorchServe's own, and the body as named
    parts.

    url_path:   given to the handler as the header of that name; None adds none.
    with_query: the query's parameters come first as parts (the SageMaker and legacy forms only);
                elsewhere a query is given to the handler as the header `url_query`.
    """
    headers: Sequence[Header] | None = request.kept
    if headers is None:
        headers = _headers(request, explain, url_path, with_query)
        if request.is_head_known:
            headers = request.kept = HeaderBlock(headers)
    parts = body_parts(request, max_parts)
    if with_query:
        query = [Part(name.encode(), b"", value.encode()) for name, value in request.query_params()]
        parts = [*query, *parts]
    return new_tuple(InferenceRequest, (request.id.encode(), headers, parts))


def _headers(
    request: HttpRequest, explain: bool, url_path: str | None, with_query: bool
) -> list[Header]:
    """They follow from the head of the request: its route has chosen the other arguments."""
    headers = list(request.headers)
    headers.append(EXPLAIN_HEADER if explain else PREDICT_HEADER)
    if url_path is not None:
        headers.append((b"url_path", url_path.encode()))
    if request.query and not with_query:
        headers.append((b"url_query", request.query))
    return headers


def body_parts(request: HttpRequest, max_parts: int) -> list[Part]:
    """The body as parts. Raises InvalidArgument where a form is broken."""
    media_type = request.content_type
    if media_type == b"multipart/form-data":
        header = request.header(b"content-type") or b""
        limits = FormLimits(max_parts=max_parts)
        return [Part(*part) for part in parse_multipart(request.body, header, limits)]
    if media_type == b"application/x-www-form-urlencoded":
        return [Part(*field) for field in parse_form(request.body, max_parts)]
    return [new_tuple(Part, (b"body", media_type, request.body))]


class Answer:
    """Carries one stream's chunks to one HTTP answer, in the turn in which they come from the
    worker.
    """

    __slots__ = ("_is_streaming", "_request")

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._is_streaming = False

    def on_chunk(self, chunk: ResponseChunk) -> None:
        request = self._request
        status, reason, media_type, headers, body, is_last = chunk
        if self._is_streaming:
            request.send_chunk(body)
            if is_last:
                request.end_stream()
            return
        if headers:
            headers = [header for header in headers if header[0].lower() != b"content-type"]
        content_type = media_type or None
        if not 100 <= status <= 999:
            status = 500
        if is_last:
            request.respond(status, body, content_type=content_type, headers=headers, reason=reason)
            return
        self._is_streaming = True
        request.start_stream(status, content_type=content_type, headers=headers, reason=reason)
        request.send_chunk(body)

    def on_error(self, error: ServingError) -> None:
        request = self._request
        if self._is_streaming:
            # The status is gone: a cut connection is the one sign that every HTTP client
            # understands.
            request.reset()
            return
        answer_error(request, error)
