"""What can go wrong, in domain words.

The core and the rooms raise a `ServingError`; each dialect turns its kind (or its class, where one
wire tells apart what the kind does not) into that wire's status and body. No HTTP or gRPC number
lives here, with one exception: `ModelError.code` is what the *handler* chose, and the handler
speaks HTTP statuses.
"""

from __future__ import annotations

import enum


class ErrorKind(enum.Enum):
    """Whose fault a failure is and what a client can do about it."""

    INVALID_ARGUMENT = "invalid_argument"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    OVERLOADED = "overloaded"
    THROTTLED = "throttled"  # the same, where an operator wants clients to be told that they do it
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    OUT_OF_MEMORY = "out_of_memory"
    MODEL_ERROR = "model_error"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class ServingError(Exception):
    """A failure that a client may be told about; `str(error)` is safe to send.

    reason:        why, in a word for programs that must tell apart what shares a status; "": no
                   more than the kind says.
    retry_after_s: in how many seconds asking again may help; None: nobody knows.
    """

    kind = ErrorKind.INTERNAL
    reason = ""
    retry_after_s: float | None = None

    def __init__(self, message: str, kind: ErrorKind | None = None) -> None:
        super().__init__(message)
        self.message = message
        if kind is not None:
            self.kind = kind


class InvalidArgument(ServingError):
    kind = ErrorKind.INVALID_ARGUMENT


class RouteNotFound(ServingError):
    kind = ErrorKind.NOT_FOUND

    def __init__(self) -> None:
        super().__init__("Requested resource is not found, please refer to API document.")


class MethodNotAllowed(ServingError):
    kind = ErrorKind.METHOD_NOT_ALLOWED

    def __init__(self) -> None:
        super().__init__("Requested method is not allowed, please refer to API document.")


class ModelNotFound(ServingError):
    """No model of that name is registered, or nothing in the store answers to that location."""

    kind = ErrorKind.NOT_FOUND

    @classmethod
    def named(cls, name: str) -> ModelNotFound:
        return cls(f"Model not found: {name}")


class ModelVersionNotFound(ServingError):
    kind = ErrorKind.NOT_FOUND

    @classmethod
    def of(cls, name: str, version: str) -> ModelVersionNotFound:
        return cls(f"Model version: {version} does not exist for model: {name}")


class ModelConflict(ServingError):
    kind = ErrorKind.CONFLICT

    @classmethod
    def of(cls, name: str, version: str) -> ModelConflict:
        return cls(f"Model version {version} is already registered for model {name}")


class InvalidModelVersion(ServingError):
    """A version that exists but may not be used this way (removing the default one)."""

    kind = ErrorKind.FORBIDDEN


class InvalidModel(ServingError):
    """The archive is not one: truncated, no usable manifest, paths that leave it."""

    kind = ErrorKind.INVALID_ARGUMENT


class ModelSetupFailed(ServingError):
    """The archive is fine, but its environment (packages, venv) could not be prepared."""

    kind = ErrorKind.INVALID_ARGUMENT


class ArchiveDownloadFailed(ServingError):
    kind = ErrorKind.INVALID_ARGUMENT


class ArchiveStorageFailed(ServingError):
    """The server could not keep the archive: a name taken in the store, a full disk."""

    kind = ErrorKind.INTERNAL


class NoWorker(ServingError):
    """Nobody can take the request now: no worker wanted, the queue full, or sequence limits.

    The texts are TorchServe's, odd quote included: clients match on them.
    """

    kind = ErrorKind.UNAVAILABLE
    reason = "no_worker"

    @classmethod
    def to_predict(cls, name: str, version: str | None, cause: str = "") -> NoWorker:
        """cause: a word for why the workers that there should be have failed, "" if unknown."""
        subject = f'Model "{name}"' if version is None else f'Model "{name}" Version {version}"'
        error = cls(
            f"{subject} has no worker to serve inference request. Please use scale workers API "
            "to add workers. If this is a sequence inference, please check if it is closed, "
            "or expired; or exceeds maxSequenceJobQueueSize"
        )
        if cause:
            error.reason = f"worker_{cause}"
        return error

    def say(self, message: str) -> None:
        """One text for every cause, as TorchServe has it; `reason` tells them apart."""
        self.message = message
        self.args = (message,)

    @classmethod
    def to_describe(cls, name: str) -> NoWorker:
        return cls(
            f'Model "{name}" has no worker to serve describe request. '
            "Please use scale workers API to add workers."
        )


class QueueFull(NoWorker):
    kind = ErrorKind.OVERLOADED
    reason = "queue_full"


class DeadlineUnreachable(ServingError):
    """By what waits already, the request would be late: it is refused instead of run in vain."""

    kind = ErrorKind.OVERLOADED
    reason = "deadline_unreachable"

    @classmethod
    def predicted(cls, needed_s: float, left_s: float) -> DeadlineUnreachable:
        return cls(
            f"An answer would take about {needed_s:.3g} s now, and the request's deadline is in "
            f"{left_s:.3g} s."
        )


class ServerBusy(ServingError):
    """All models together have as much to do as the settings allow."""

    kind = ErrorKind.OVERLOADED

    @classmethod
    def with_requests(cls, limit: int) -> ServerBusy:
        error = cls(f"The server is at work on {limit} requests, its limit (max_live_requests).")
        error.reason = "too_many_requests"
        return error

    @classmethod
    def with_bytes(cls, limit: int) -> ServerBusy:
        error = cls(
            f"The requests in the server hold as much as is allowed: {limit} bytes "
            "(max_live_request_bytes)."
        )
        error.reason = "too_many_bytes"
        return error


class DeadlineExceeded(ServingError):
    kind = ErrorKind.DEADLINE_EXCEEDED
    reason = "deadline_exceeded"


class RequestCancelled(ServingError):
    kind = ErrorKind.CANCELLED

    def __init__(self) -> None:
        super().__init__("The client closed the connection before the answer was ready.")


class WorkerDied(ServingError):
    """The process that held the request ended, hung past its time, or broke the protocol."""

    kind = ErrorKind.INTERNAL

    def __init__(self, message: str = "Worker died.", *, out_of_memory: bool = False) -> None:
        super().__init__(message, ErrorKind.OUT_OF_MEMORY if out_of_memory else None)


class RequestQuarantined(ServingError):
    """Too many workers died while they ran the request; it is not run again."""

    kind = ErrorKind.UNAVAILABLE
    reason = "quarantined"

    @classmethod
    def after(cls, deaths: int, cause: str) -> RequestQuarantined:
        return cls(
            f"Worker died {deaths} times while it ran this request (the last time: {cause}); "
            "it is not run again."
        )


class WorkerStartFailed(ServingError):
    """No worker of the model reached the loaded state.

    cause:       why, for the log and the operator.
    was_refused: the worker itself answered that it cannot load the model, rather than dying.
    was_stopped: nothing was wrong; the server ended it, for a scale or an unregister.
    """

    kind = ErrorKind.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        cause: str = "",
        out_of_memory: bool = False,
        was_refused: bool = False,
        was_stopped: bool = False,
    ) -> None:
        super().__init__(message, ErrorKind.OUT_OF_MEMORY if out_of_memory else None)
        self.cause = cause
        self.was_refused = was_refused
        self.was_stopped = was_stopped


class NotEnoughDevices(ServingError):
    """One worker of the model spans more GPUs than there are."""

    kind = ErrorKind.INTERNAL

    @classmethod
    def of(cls, name: str, level: int) -> NotEnoughDevices:
        return cls(f"No enough gpu devices for model:{name} parallelLevel:{level}")


class SelfTestFailed(WorkerStartFailed):
    """A worker has loaded the model and does not answer the archive's own requests as it should."""

    kind = ErrorKind.INVALID_ARGUMENT
    reason = "self_test"

    @classmethod
    def of(cls, name: str, version: str, complaint: str) -> SelfTestFailed:
        return cls(f"Model {name} version: {version}: {complaint}", cause=complaint)


class RolloutConflict(ServingError):
    """A rollout cannot begin beside another one, or not from here."""

    kind = ErrorKind.CONFLICT


class RolloutNotFound(ServingError):
    kind = ErrorKind.NOT_FOUND


class ModelError(ServingError):
    """The handler failed the batch; `code` is the HTTP status that the worker reported."""

    kind = ErrorKind.MODEL_ERROR

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
