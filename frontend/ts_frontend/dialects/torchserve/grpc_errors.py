"""What went wrong, in the words of TorchServe's gRPC services: a code, and a text of two lines, the
message and the name of a Java class (contract, gRPC sections 2, 3 and 5).

The management service keeps TorchServe's codes, which its published test data name. Its inference
service says INTERNAL to nearly everything; here a client hears the standard code, unless
`compatibility=torchserve` wants the old one. The texts are TorchServe's in any case.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc

from ts_frontend.core import errors
from ts_frontend.core.errors import ErrorKind, ModelError, ServingError
from ts_frontend.dialects.inference_grpc import CODE_OF_KIND, status_of_http
from ts_frontend.grpc.service import Status

Code = grpc.StatusCode

BAD_REQUEST = "org.pytorch.serve.http.BadRequestException"
INTERNAL_SERVER = "org.pytorch.serve.http.InternalServerException"
MODEL_NOT_FOUND = "org.pytorch.serve.archive.model.ModelNotFoundException"
VERSION_NOT_FOUND = "org.pytorch.serve.archive.model.ModelVersionNotFoundException"
MODEL = "org.pytorch.serve.archive.model.ModelException"

# What TorchServe prints where it meant a class, and clients have seen ever since.
ODD_BAD_REQUEST = "BadRequestException.()"
ODD_INTERNAL_SERVER = "InternalServerException.()"


class Failure(NamedTuple):
    code: grpc.StatusCode
    message: str
    marker: str

    def status(self) -> Status:
        return Status(self.code, f"{self.message}\n{self.marker}")


class ModelApiDisabled(ServingError):
    """Registering and unregistering are switched off."""

    kind = ErrorKind.FORBIDDEN

    def __init__(self) -> None:
        super().__init__("Model API disabled")


_INFERENCE: dict[ErrorKind, tuple[Code, str]] = {
    ErrorKind.INVALID_ARGUMENT: (Code.INTERNAL, ODD_BAD_REQUEST),
    # Of a full queue TorchServe says INTERNAL (see below); the other refusals it does not know.
    ErrorKind.OVERLOADED: (Code.UNAVAILABLE, ODD_INTERNAL_SERVER),
    ErrorKind.THROTTLED: (Code.RESOURCE_EXHAUSTED, ODD_INTERNAL_SERVER),
    ErrorKind.UNAVAILABLE: (Code.INTERNAL, ODD_INTERNAL_SERVER),
    # TorchServe leaves a late client without an answer.
    ErrorKind.DEADLINE_EXCEEDED: (Code.DEADLINE_EXCEEDED, INTERNAL_SERVER),
    ErrorKind.CANCELLED: (Code.CANCELLED, INTERNAL_SERVER),
    # A worker killed for memory is 413 inside TorchServe, which gives this code.
    ErrorKind.OUT_OF_MEMORY: (Code.RESOURCE_EXHAUSTED, INTERNAL_SERVER),
}

_INFERENCE_CLASSES: dict[type[ServingError], tuple[Code, str]] = {
    errors.ModelNotFound: (Code.INTERNAL, MODEL_NOT_FOUND),
    errors.ModelVersionNotFound: (Code.INTERNAL, VERSION_NOT_FOUND),
    errors.QueueFull: (Code.INTERNAL, ODD_INTERNAL_SERVER),
}

_MANAGEMENT_CLASSES: dict[type[ServingError], tuple[Code, str]] = {
    errors.ModelNotFound: (Code.NOT_FOUND, MODEL_NOT_FOUND),
    errors.ModelVersionNotFound: (Code.NOT_FOUND, VERSION_NOT_FOUND),
    errors.InvalidArgument: (Code.INVALID_ARGUMENT, BAD_REQUEST),
    errors.InvalidModel: (
        Code.INVALID_ARGUMENT,
        "org.pytorch.serve.archive.model.InvalidModelException",
    ),
    errors.ModelSetupFailed: (Code.INVALID_ARGUMENT, MODEL),
    errors.ArchiveDownloadFailed: (
        Code.INVALID_ARGUMENT,
        "org.pytorch.serve.archive.DownloadArchiveException",
    ),
    ModelApiDisabled: (Code.PERMISSION_DENIED, MODEL),
    # TorchServe does not expect the next three; its library then answers UNKNOWN, without a text.
    errors.ModelConflict: (Code.UNKNOWN, "org.pytorch.serve.http.ConflictStatusException"),
    errors.InvalidModelVersion: (
        Code.UNKNOWN,
        "org.pytorch.serve.http.InvalidModelVersionException",
    ),
    errors.DeadlineExceeded: (Code.UNKNOWN, "org.pytorch.serve.http.RequestTimeoutException"),
    errors.NoWorker: (Code.INTERNAL, ODD_INTERNAL_SERVER),
}


def inference_failure(error: ServingError) -> Failure:
    failure = torchserve_inference_failure(error)
    if isinstance(error, ModelError):
        return failure
    return failure._replace(code=CODE_OF_KIND[error.kind])


def torchserve_inference_failure(error: ServingError) -> Failure:
    """With the code that TorchServe has for it."""
    if isinstance(error, ModelError):
        return Failure(status_of_http(error.code), error.message, INTERNAL_SERVER)
    is_throttled = error.kind is ErrorKind.THROTTLED  # asked for by the operator, so it counts
    row = None if is_throttled else _INFERENCE_CLASSES.get(type(error))
    code, marker = row or _INFERENCE.get(error.kind, (Code.INTERNAL, INTERNAL_SERVER))
    return Failure(code, error.message, marker)


def management_status(error: ServingError) -> Status:
    if isinstance(error, ModelError):
        return Failure(status_of_http(error.code), error.message, INTERNAL_SERVER).status()
    code, marker = _MANAGEMENT_CLASSES.get(type(error), (Code.INTERNAL, INTERNAL_SERVER))
    return Failure(code, error.message, marker).status()
