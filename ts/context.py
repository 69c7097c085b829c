"""What a handler may know of its model and its requests, and set for its answers."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class RequestCancelled(Exception):
    """Nobody waits for the answer any more: the client left, or its deadline has passed.

    Raised by `send_intermediate_predict_response`; a handler that asks `Context.is_cancelled` may
    raise it too. The worker takes it as the end of a batch for which nobody waits; in a batch with
    others it fails the batch, and those who wait are run again (`docs/survival.md`).
    """


class Cancellations(Protocol):
    """Who knows which requests were cancelled."""

    def covers(self, request_ids: Collection[str]) -> bool:
        """Whether nobody waits for any of these any more."""
        ...


class RequestProcessor:
    """One request's headers, and what the handler wants its response to carry."""

    def __init__(self, request_header: dict[str, Any]) -> None:
        self._status_code = 200
        self._reason_phrase: str | None = None
        self._response_header: dict[str, str] = {}
        self._request_header = request_header

    def get_request_property(self, key: str) -> Any:
        return self._request_header.get(key)

    def get_request_properties(self) -> dict[str, Any]:
        return self._request_header

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        self._status_code = code
        self._reason_phrase = reason_phrase

    def get_response_status_code(self) -> int:
        return self._status_code

    def get_response_status_phrase(self) -> str | None:
        return self._reason_phrase

    def add_response_property(self, key: str, value: str) -> None:
        self._response_header[key] = value

    def get_response_headers(self) -> dict[str, str]:
        return self._response_header

    def get_response_header(self, key: str) -> str | None:
        return self._response_header.get(key)


class Context:
    """One object per worker, the same for all batches; a handler may attach what it likes.

    The first group of attributes belongs to the model and stays; the second belongs to the batch
    that the handler is working on. `stopping_criteria` is the handler's alone and never reset.
    """

    def __init__(
        self,
        model_name: str | None,
        model_dir: str | None,
        manifest: dict[str, Any] | None,
        batch_size: int | None,
        gpu: int | None,
        mms_version: str | None,
        limit_max_image_pixels: bool = True,
        metrics: Any = None,
        model_yaml_config: dict[str, Any] | None = None,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.model_yaml_config = model_yaml_config
        self._system_properties = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",
            "server_version": mms_version,
            "limit_max_image_pixels": limit_max_image_pixels,
        }
        environ = os.environ
        self.header_key_sequence_id = environ.get(
            "TS_REQUEST_SEQUENCE_ID", "ts_request_sequence_id"
        )
        self.header_key_sequence_start = environ.get(
            "TS_REQUEST_SEQUENCE_START", "ts_request_sequence_start"
        )
        self.header_key_sequence_end = environ.get(
            "TS_REQUEST_SEQUENCE_END", "ts_request_sequence_end"
        )
        self.stopping_criteria: Any = None

        self._metrics = metrics
        self.request_ids: Mapping[int, str] | None = None
        self._request_processor: list[RequestProcessor] = []
        self.cl_socket: Any = None
        self._cancellations: Cancellations | None = None

    @property
    def system_properties(self) -> dict[str, Any]:
        return self._system_properties

    @property
    def metrics(self) -> Any:
        return self._metrics

    @metrics.setter
    def metrics(self, metrics: Any) -> None:
        self._metrics = metrics

    @property
    def request_processor(self) -> list[RequestProcessor]:
        return self._request_processor

    @request_processor.setter
    def request_processor(self, requests: Iterable[RequestProcessor | dict[str, Any]]) -> None:
        """Begin a new batch: one processor, or the headers to make one from, per request."""
        self._request_processor = [
            request if isinstance(request, RequestProcessor) else RequestProcessor(request)
            for request in requests
        ]

    def copy_for_message(self) -> Context:
        """A context of its own for a message that is handled beside others.

        What a handler has attached is copied deeply, so that messages do not share it by accident;
        what cannot be copied (locks, engines, sockets) is shared.
        """
        duplicate = copy.copy(self)
        # Copied first and shallowly: its definitions are common, only the request ids are not.
        duplicate._metrics = copy.copy(self._metrics)
        duplicate.request_ids = None
        duplicate._request_processor = []
        shared = (
            *("_metrics", "request_ids", "_request_processor", "cl_socket", "model_name"),
            "_cancellations",
        )
        for name, value in vars(self).items():
            if name in shared:
                continue
            try:
                setattr(duplicate, name, copy.deepcopy(value))
            except Exception as error:  # __deepcopy__ of foreign objects raises all sorts
                logger.debug("context.%s is shared between messages: %s", name, error)
        return duplicate

    def get_request_id(self, idx: int = 0) -> str | None:
        return None if self.request_ids is None else self.request_ids.get(idx)

    def is_cancelled(self, idx: int | None = None) -> bool:
        """Whether nobody waits for request `idx` any more; without it, for none of the batch.

        For handlers that take long: ask now and then, and return or raise RequestCancelled. The
        answer to a cancelled request is dropped. It costs a system call every half millisecond at
        most, and nothing if never asked; always False behind a frontend that does not tell its
        workers.
        """
        if self._cancellations is None or not self.request_ids:
            return False
        if idx is None:
            return self._cancellations.covers(self.request_ids.values())
        return self._cancellations.covers((self.request_ids[idx],))

    def get_request_header(self, idx: int, key: str) -> Any:
        return self._request_processor[idx].get_request_property(key)

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return self._request_processor[idx].get_request_properties()

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        return self._request_processor[idx].get_response_header("content-type")

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """One value per key; the last one counts."""
        self._request_processor[idx].add_response_property(key, value)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        return self._request_processor[idx].get_response_headers()

    def set_response_status(self, code: int = 200, phrase: str | None = "", idx: int = 0) -> None:
        """The status of one request; nothing happens if the batch has no request `idx`."""
        if idx < len(self._request_processor):
            self._request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str | None = "") -> None:
        for processor in self._request_processor:
            processor.report_status(code, phrase)

    def get_response_status(self, idx: int) -> tuple[int, str | None]:
        processor = self._request_processor[idx]
        return processor.get_response_status_code(), processor.get_response_status_phrase()

    def has_plain_response(self, idx: int) -> bool:
        """Whether the handler has set nothing of the response: no header, status or phrase."""
        processor = self._request_processor[idx]
        return (
            processor._status_code == 200
            and not processor._reason_phrase
            and not processor._response_header
        )

    def get_sequence_id(self, idx: int) -> Any:
        return self._request_processor[idx].get_request_property(self.header_key_sequence_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Context) and self.__dict__ == other.__dict__

    # Equality by value would take hashing away, and handlers keep contexts in dictionaries.
    __hash__ = object.__hash__
