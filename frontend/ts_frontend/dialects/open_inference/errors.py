"""What went wrong, in the words of the Open Inference Protocol's REST form: `{"error": text}`."""

from __future__ import annotations

import logging

import msgspec

from ts_frontend.core.errors import ErrorKind, ModelError, ServingError
from ts_frontend.dialects.errors import respond_failure
from ts_frontend.dialects.open_inference.compression import BodyTooLarge
from ts_frontend.dialects.open_inference.schema import ErrorBody
from ts_frontend.http.request import HttpRequest

logger = logging.getLogger(__name__)

STATUS_OF_KIND: dict[ErrorKind, int] = {
    ErrorKind.INVALID_ARGUMENT: 400,
    # As on TorchServe's other paths of the same listener.
    ErrorKind.UNAUTHENTICATED: 400,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.METHOD_NOT_ALLOWED: 405,
    ErrorKind.CONFLICT: 409,
    ErrorKind.OVERLOADED: 503,
    ErrorKind.THROTTLED: 429,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.DEADLINE_EXCEEDED: 504,
    ErrorKind.OUT_OF_MEMORY: 507,
    ErrorKind.CANCELLED: 503,
    ErrorKind.MODEL_ERROR: 500,
    ErrorKind.INTERNAL: 500,
}

FAULT = "Internal server error; the server's log has the details."


class InvalidAnswer(ServingError):
    """What the model answered is not what the protocol, or this request, asks of it."""

    kind = ErrorKind.MODEL_ERROR

    def __init__(self, reason: str) -> None:
        super().__init__(f"The model's answer is not an Open Inference response: {reason}")


def translate(error: BaseException) -> tuple[int, bytes]:
    """Status and body of any failure."""
    if isinstance(error, ServingError):
        status, text = STATUS_OF_KIND[error.kind], error.message
        if isinstance(error, BodyTooLarge):
            status = 413
        if isinstance(error, ModelError) and 400 <= error.code <= 599:
            # 413 from a worker is its way to say that it ran out of memory.
            status = 507 if error.code == 413 else error.code
    else:
        logger.error("A request failed by a fault of the server.", exc_info=error)
        status, text = 500, FAULT
    return status, msgspec.json.encode(ErrorBody(text))


def transport_error(status: int, message: str) -> bytes:
    """The body of an error that no handler of the dialect hears of."""
    return msgspec.json.encode(ErrorBody(message))


def answer_error(request: HttpRequest, error: BaseException) -> None:
    status, body = translate(error)
    respond_failure(request, error, status, body)
