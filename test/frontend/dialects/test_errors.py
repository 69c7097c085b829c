"""Failures as all HTTP dialects answer them: the status, and what the headers tell programs."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from ts_frontend.core.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    ErrorKind,
    ModelNotFound,
    NoWorker,
    QueueFull,
    ServerBusy,
    ServingError,
)
from ts_frontend.dialects import errors as house
from ts_frontend.dialects.open_inference import errors as open_inference
from ts_frontend.http.request import HttpRequest


class RecordedAnswer:
    def respond(self, status: int, body: bytes, **more: Any) -> None:
        self.status = status
        self.body = json.loads(body)
        self.headers = dict(more.get("headers", ()))
        self.keeps_connection = more.get("keeps_connection", False)


def answer_to(error: BaseException, dialect: Any = house) -> RecordedAnswer:
    answer = RecordedAnswer()
    dialect.answer_error(cast(HttpRequest, answer), error)
    return answer


def throttled(error: ServingError, retry_after_s: float) -> ServingError:
    error.kind = ErrorKind.THROTTLED
    error.retry_after_s = retry_after_s
    return error


ANSWERS = [
    (throttled(QueueFull("full"), 0.2), 429, "queue_full", b"1", True),
    (throttled(DeadlineUnreachable("late"), 4.2), 429, "deadline_unreachable", b"5", True),
    (QueueFull("full"), 503, "queue_full", None, True),
    (ServerBusy.with_requests(5), 503, "too_many_requests", None, True),
    (NoWorker.to_predict("m", None), 503, "no_worker", None, False),
    (ModelNotFound.named("m"), 404, "", None, False),
    (ValueError("ours"), 500, "", None, False),
]


@pytest.mark.parametrize("dialect", [house, open_inference], ids=["house", "open inference"])
@pytest.mark.parametrize(("error", "status", "reason", "retry_after", "keeps"), ANSWERS)
def test_what_programs_can_tell(
    dialect: Any,
    error: BaseException,
    status: int,
    reason: str,
    retry_after: bytes | None,
    keeps: bool,
) -> None:
    answer = answer_to(error, dialect)
    assert answer.status == status
    assert answer.headers.get(house.REASON_HEADER, b"").decode() == reason
    assert answer.headers.get(b"Retry-After") == retry_after
    assert answer.keeps_connection is keeps


def test_a_deadline_that_passed_is_told_apart_from_one_that_cannot_be_met() -> None:
    answer = answer_to(DeadlineExceeded("late"))
    assert (answer.status, answer.headers[house.REASON_HEADER]) == (408, b"deadline_exceeded")
    assert answer_to(DeadlineExceeded("late"), open_inference).status == 504


@pytest.mark.parametrize("table", [house.STATUS_OF_KIND, open_inference.STATUS_OF_KIND])
def test_every_kind_has_its_status(table: dict[ErrorKind, Any]) -> None:
    assert set(table) == set(ErrorKind)


def test_the_bare_refusal_of_a_body() -> None:
    assert house.bare_refusal(ServerBusy.with_bytes(10)) == (
        b"HTTP/1.1 503 Service Unavailable\r\nx-error-reason: too_many_bytes\r\n"
        b"Retry-After: 1\r\ncontent-length: 0\r\n"
    )
