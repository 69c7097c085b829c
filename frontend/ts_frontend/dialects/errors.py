"""What went wrong, in TorchServe's words: status, `type` and message (contract, HTTP section 2).

This is the house form: besides the TorchServe dialect it answers for what belongs to no dialect (an
unknown path, bytes that are no HTTP) and for KServe's v1 paths, as TorchServe does. A dialect with
a form of its own brings its own table.
"""

from __future__ import annotations

import logging
import math

import msgspec

from ts_frontend.core import errors
from ts_frontend.core.errors import ErrorKind, ServingError
from ts_frontend.dialects.json_body import JSON, pretty_json
from ts_frontend.http.request import HttpRequest, status_line


class ErrorBody(msgspec.Struct):
    code: int
    type: str
    message: str


logger = logging.getLogger(__name__)

INTERNAL = "InternalServerException"
REASON_HEADER = b"x-error-reason"

# By class first: TorchServe's `type` tells apart what a kind does not.
TYPE_OF_CLASS: dict[type[ServingError], tuple[int, str]] = {
    errors.RouteNotFound: (404, "ResourceNotFoundException"),
    errors.ModelNotFound: (404, "ModelNotFoundException"),
    errors.ModelVersionNotFound: (404, "ModelVersionNotFoundException"),
    errors.InvalidModel: (400, "InvalidModelException"),
    errors.ModelSetupFailed: (400, "ModelException"),
    errors.ArchiveDownloadFailed: (400, "DownloadArchiveException"),
    errors.NotEnoughDevices: (500, "WorkerInitializationException"),
    errors.SelfTestFailed: (400, "InvalidModelException"),
    errors.InvalidModelVersion: (403, "InvalidModelVersionException"),
}

STATUS_OF_KIND: dict[ErrorKind, tuple[int, str]] = {
    ErrorKind.INVALID_ARGUMENT: (400, "BadRequestException"),
    # TorchServe answers bad credentials with 400, not 401 or 403; clients test for it.
    ErrorKind.UNAUTHENTICATED: (400, "InvalidKeyException"),
    ErrorKind.FORBIDDEN: (403, "ForbiddenException"),
    ErrorKind.NOT_FOUND: (404, "ResourceNotFoundException"),
    ErrorKind.METHOD_NOT_ALLOWED: (405, "MethodNotAllowedException"),
    ErrorKind.CONFLICT: (409, "ConflictStatusException"),
    ErrorKind.OVERLOADED: (503, "ServiceUnavailableException"),
    ErrorKind.THROTTLED: (429, "ServiceUnavailableException"),
    ErrorKind.UNAVAILABLE: (503, "ServiceUnavailableException"),
    ErrorKind.DEADLINE_EXCEEDED: (408, "RequestTimeoutException"),
    ErrorKind.OUT_OF_MEMORY: (507, INTERNAL),
    ErrorKind.CANCELLED: (503, "ServiceUnavailableException"),
    ErrorKind.MODEL_ERROR: (500, INTERNAL),
    ErrorKind.INTERNAL: (500, INTERNAL),
}


def status_and_type(error: ServingError) -> tuple[int, str]:
    if isinstance(error, errors.ModelError):
        # 413 from a worker is its way to say that it ran out of memory.
        return (507 if error.code == 413 else error.code), INTERNAL
    found = TYPE_OF_CLASS.get(type(error))
    return STATUS_OF_KIND[error.kind] if found is None else found


def error_body(status: int, type_name: str, message: str) -> bytes:
    return pretty_json(ErrorBody(code=status, type=type_name, message=message))


def translate(error: BaseException) -> tuple[int, bytes]:
    """Status and body of any failure. What is our own bug stays in the log; the client gets one
    line.
    """
    if isinstance(error, ServingError):
        status, type_name = status_and_type(error)
        if not 100 <= status <= 999:
            status = 500
        return status, error_body(status, type_name, error.message)
    if isinstance(error, msgspec.ValidationError):
        return 400, error_body(400, "BadRequestException", str(error))
    logger.error("A request failed by a fault of the server.", exc_info=error)
    return 500, error_body(
        500, INTERNAL, "Internal server error; the server's log has the details."
    )


def answer_error(request: HttpRequest, error: BaseException) -> None:
    status, body = translate(error)
    respond_failure(request, error, status, body)


def respond_failure(request: HttpRequest, error: BaseException, status: int, body: bytes) -> None:
    """Send the answer to a failed request, with what its headers can tell programs (any dialect).

    The connection of a client that is only to come again later stays open, where TorchServe closes
    it as after any failure: under overload a connection costs more than the refusal.
    """
    if not isinstance(error, ServingError) or not error.reason:
        request.respond(status, body, content_type=JSON)
        return
    headers = [(REASON_HEADER, error.reason.encode())]
    if error.retry_after_s is not None:
        headers.append((b"Retry-After", b"%d" % max(1, math.ceil(error.retry_after_s))))
    request.respond(
        status,
        body,
        content_type=JSON,
        headers=headers,
        keeps_connection=error.kind in (ErrorKind.OVERLOADED, ErrorKind.THROTTLED),
    )


def bare_refusal(error: ServingError) -> bytes:
    """The head of an answer without a body, for a request whose own body is not even read; the
    empty line is still to come.
    """
    status, _ = status_and_type(error)
    return b"%b%b: %b\r\nRetry-After: 1\r\ncontent-length: 0\r\n" % (
        status_line(status),
        REASON_HEADER,
        error.reason.encode(),
    )


# What the HTTP room itself refuses, before any route is known.
TRANSPORT_TYPES = {
    400: "BadRequestException",
    408: "RequestTimeoutException",
    413: "BadRequestException",
}


def transport_error(status: int, message: str) -> bytes:
    return error_body(status, TRANSPORT_TYPES.get(status, INTERNAL), message)
