"""A worker's own test between its load and its first client: see `core.self_test`.

The requests go to the worker one after the other as batches of one, and its replies come here
instead of to the worker's jobs; there are none yet.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

from ts.protocol.messages import MORE_FOLLOWS, Prediction, PredictReply, encode_predict
from ts_frontend.core.self_test import SelfTest, TestRequest
from ts_frontend.workers.connections.base import WorkerConnection

RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-6
_SHOWN = 200  # characters of an answer


class Complaint(Exception):
    """`str(error)`: which request, what was expected and what came."""


class SelfTester:
    """One worker's test: `run` sends, `on_predict_reply` hears."""

    def __init__(self, test: SelfTest, timeout_s: float) -> None:
        self._test = test
        self._timeout_s = timeout_s
        self._replies: asyncio.Queue[PredictReply] = asyncio.Queue()

    def on_predict_reply(self, reply: PredictReply) -> None:
        self._replies.put_nowait(reply)

    async def run(self, connection: WorkerConnection) -> None:
        """Raises Complaint. A worker that dies meanwhile is the caller's to notice."""
        if self._test.mistake:
            raise Complaint(f"it cannot be run: {self._test.mistake}")
        for test in self._test.requests:
            for _ in range(test.repeat):
                connection.send(encode_predict([test.request]))
                try:
                    async with asyncio.timeout(self._timeout_s):
                        complaint = complaint_about(test, *await self._answer())
                except TimeoutError:
                    complaint = f"no answer within {self._timeout_s:g} s (responseTimeout)"
                if complaint:
                    raise Complaint(f"{test.name}: {complaint}")

    async def _answer(self) -> tuple[int, bytes]:
        """Status and body; of a handler's failure the message in place of the body."""
        status = 0
        body = bytearray()
        while True:
            reply = await self._replies.get()
            if reply.code != 200:
                return reply.code, reply.message.encode()
            predictions: Sequence[Prediction] = reply.predictions
            if len(predictions) != 1:
                return 500, b"%d answers for one request" % len(predictions)
            (prediction,) = predictions
            status = status or prediction.status
            body += prediction.body
            if MORE_FOLLOWS not in prediction.headers:
                return status, bytes(body)


def complaint_about(test: TestRequest, status: int, body: bytes) -> str:
    """What is wrong with an answer, "" if it is as expected."""
    if status != test.status if test.status else status >= 400:
        wanted = f"{test.status}" if test.status else "one below 400"
        return f"the status {status} instead of {wanted}: {_show(body)}"
    if test.answer is not None and not is_same_answer(body, test.answer):
        return f"another answer than expected: {_show(body)}"
    return ""


def is_same_answer(body: bytes, expected: bytes) -> bool:
    """Equal bytes, or equal JSON values; numbers may differ by what other machines compute."""
    if body.strip() == expected.strip():
        return True
    try:
        return _is_close(json.loads(body), json.loads(expected))
    except (ValueError, RecursionError):
        return False


def _is_close(value: Any, expected: Any) -> bool:
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, (int, float)) and isinstance(expected, (int, float)):
        return math.isclose(value, expected, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(_is_close, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(
            _is_close(value[key], expected[key]) for key in expected
        )
    return bool(value == expected)


def _show(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
