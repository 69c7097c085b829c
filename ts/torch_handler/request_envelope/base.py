"""What every envelope does around a handler."""

from __future__ import annotations

import copy
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence, Sized
from typing import Any

from ts.utils.util import PredictionException


class BaseEnvelope(ABC):
    """Unwraps the requests of a batch, calls the handler, wraps its answers.

    What `parse_input` knows of its batch it may keep in attributes for `format_output`: an
    asynchronous handler's batches, of which there are many at once, each find their own again.
    Such an attribute is set anew for every batch, not changed in place.
    """

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        self._handle_fn = handle_fn
        self.context: Any = None
        # Per batch: how many of the handler's rows each request gave.
        self._row_counts: list[int] = []

    def handle(self, data: Any, context: Any) -> Any:
        """The handler's answers to the unwrapped requests, wrapped again; or an awaitable of them.

        A describe call has an empty request and a free-form answer, so both go through as they are.
        """
        self.context = context
        if self._has_true_header("describe"):
            return self._handle_fn(data, context)
        if data:
            data = self.parse_input(data)
            if isinstance(data, list) and not data:
                return self._without_rows()
        results = self._handle_fn(data, context)
        if inspect.isawaitable(results):
            return copy.copy(self)._formatted_later(results)  # other batches come before its end
        return self._formatted(results)

    def _without_rows(self) -> Any:
        """The answers where the batch has no row that a handler could be asked about."""
        answers = self.format_output([])
        return _later(answers) if inspect.iscoroutinefunction(self._handle_fn) else answers

    async def _formatted_later(self, results: Awaitable[Any]) -> Any:
        return self._formatted(await results)

    def _formatted(self, results: Any) -> Any:
        if results is None:
            return None
        if not isinstance(results, Sized):
            raise TypeError(
                f"{type(self).__name__} shapes whole answers, and the handler returned a "
                f"{type(results).__name__}; handlers that stream need service_envelope=body or none"
            )
        return self.format_output(results) if len(results) else results

    @abstractmethod
    def parse_input(self, data: list[Any]) -> Any:
        """What the handler gets for the requests of a batch."""

    @abstractmethod
    def format_output(self, data: Any) -> Any:
        """The answers to the requests, from what the handler returned."""

    def _has_true_header(self, key: str) -> bool:
        return bool(self.context) and self.context.get_request_header(0, key) == "True"

    def _split_rows(self, results: Sequence[Any]) -> list[Sequence[Any]]:
        """The handler's results, one slice per request.

        A lone request gets all of them. With more, the counts have to match, otherwise clients
        would get each other's results.
        """
        if len(self._row_counts) == 1:
            return [results]
        if len(results) != sum(self._row_counts):
            raise ValueError(
                f"the handler returned {len(results)} results for {sum(self._row_counts)} rows "
                f"of {len(self._row_counts)} requests"
            )
        slices = []
        start = 0
        for count in self._row_counts:
            slices.append(results[start : start + count])
            start += count
        return slices


async def _later(answers: Any) -> Any:
    return answers


def request_body(row: Any) -> Any:
    """The request's `data` or `body`, parsed if it is JSON; the row itself if it has neither."""
    body = row
    if isinstance(row, dict):
        body = row.get("data") or row.get("body") or row
    if isinstance(body, str | bytes | bytearray | memoryview):
        try:
            return json.loads(body if isinstance(body, str) else bytes(body))
        except ValueError as error:
            raise PredictionException(f"the request body is not JSON: {error}", 400) from error
        except RecursionError as error:
            raise PredictionException("the request body is nested too deeply", 400) from error
    return body


def rows_of(body: Any, key: str) -> list[Any]:
    """The list that the request's JSON object has under `key`; PredictionException without one."""
    rows = body.get(key) if isinstance(body, dict) else None
    if not isinstance(rows, list):
        raise PredictionException(f'the request body must be an object with a list "{key}"', 400)
    return rows
