"""Kinds and texts that dialects and clients rely on."""

from __future__ import annotations

import pytest

from ts_frontend.core.errors import (
    ErrorKind,
    ModelError,
    ModelNotFound,
    ModelVersionNotFound,
    NoWorker,
    QueueFull,
    RequestCancelled,
    ServingError,
    WorkerDied,
    WorkerStartFailed,
)

KINDS = [
    (ServingError("x"), ErrorKind.INTERNAL),
    (ServingError("x", ErrorKind.FORBIDDEN), ErrorKind.FORBIDDEN),
    (ModelNotFound.named("m"), ErrorKind.NOT_FOUND),
    (ModelVersionNotFound.of("m", "1"), ErrorKind.NOT_FOUND),
    (NoWorker.to_predict("m", None), ErrorKind.UNAVAILABLE),
    (QueueFull("x"), ErrorKind.OVERLOADED),
    (RequestCancelled(), ErrorKind.CANCELLED),
    (WorkerDied(), ErrorKind.INTERNAL),
    (WorkerDied(out_of_memory=True), ErrorKind.OUT_OF_MEMORY),
    (WorkerStartFailed("x"), ErrorKind.INTERNAL),
    (WorkerStartFailed("x", out_of_memory=True), ErrorKind.OUT_OF_MEMORY),
    (ModelError(503, "x"), ErrorKind.MODEL_ERROR),
]


@pytest.mark.parametrize(("error", "kind"), KINDS)
def test_every_error_has_its_kind(error: ServingError, kind: ErrorKind) -> None:
    assert error.kind is kind
    assert str(error) == error.message


def test_one_errors_kind_is_not_its_class_s() -> None:
    assert WorkerDied(out_of_memory=True).kind is not WorkerDied.kind
    assert WorkerDied().kind is WorkerDied.kind


# Clients match on these, the odd quote included.
TEXTS = [
    (WorkerDied(), "Worker died."),
    (
        NoWorker.to_predict("m", None),
        'Model "m" has no worker to serve inference request. Please use scale workers API to add '
        "workers. If this is a sequence inference, please check if it is closed, or expired; "
        "or exceeds maxSequenceJobQueueSize",
    ),
    (
        NoWorker.to_predict("m", "1.0"),
        'Model "m" Version 1.0" has no worker to serve inference request. Please use scale workers '
        "API to add workers. If this is a sequence inference, please check if it is closed, or "
        "expired; or exceeds maxSequenceJobQueueSize",
    ),
    (
        NoWorker.to_describe("m"),
        'Model "m" has no worker to serve describe request. '
        "Please use scale workers API to add workers.",
    ),
]


@pytest.mark.parametrize(("error", "text"), TEXTS)
def test_texts_are_torchserves(error: ServingError, text: str) -> None:
    assert str(error) == text
