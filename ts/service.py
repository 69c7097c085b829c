"""A loaded model: batch in, handler, reply out.

`Service.predict` is the whole road of a batch through the worker: requests become the handler's
`data` and its Context, the handler runs, and what it returns (or raises) becomes the reply.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ts.context import Cancellations, Context, RequestCancelled, RequestProcessor
from ts.generators import drain, has_streams
from ts.protocol.batch_reply import (
    UNSUPPORTED_OUTPUT,
    UnsupportedOutput,
    encode_batch_reply,
    encode_failure,
)
from ts.protocol.frames import Buffer
from ts.protocol.messages import SUCCESS_MESSAGE, PredictRequest
from ts.protocol.otf_message_handler import create_predict_response
from ts.protocol.values import decode_value, is_decoding_wanted
from ts.utils.environment import env_number
from ts.utils.util import PredictionException, get_yaml_config
from ts.version import __version__

__all__ = [
    "PREDICTION_METRIC",
    "PredictionException",
    "Service",
    "create_predict_response",
    "emit_metrics",
]

logger = logging.getLogger(__name__)

CANCELLED_STATUS = 499  # nobody reads it; the number that proxies log for a client that left

PREDICTION_METRIC = "PredictionTime"
# TorchServe emits the metric for every batch; 0 does so here.
PREDICTION_METRIC_INTERVAL_S = env_number("TS_PREDICTION_METRIC_INTERVAL_MS", 100) / 1000


class Service:
    """One model, started: its entry point and the context that its handler sees."""

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any] | None,
        entry_point: Callable[[Any, Context], Any],
        gpu: int | None,
        batch_size: int | None,
        limit_max_image_pixels: bool = True,
        metrics_cache: Any = None,
    ) -> None:
        self._entry_point = entry_point
        self._is_decoding = is_decoding_wanted()
        self._next_prediction_time_s = 0.0
        self._last_headers: Sequence[tuple[bytes, bytes]] = ()
        self._last_texts: dict[str, str] = {}
        self._context = Context(
            model_name,
            model_dir,
            manifest,
            batch_size,
            gpu,
            __version__,
            limit_max_image_pixels,
            metrics_cache,
            read_model_config(model_dir, manifest),
        )

    @property
    def context(self) -> Context:
        return self._context

    def set_cl_socket(self, cl_socket: Any) -> None:
        """Name the connection on which handlers send parts of their answers."""
        self._context.cl_socket = cl_socket

    def set_cancellations(self, cancellations: Cancellations) -> None:
        """Whom `Context.is_cancelled` asks."""
        self._context._cancellations = cancellations

    def predict(self, batch: Sequence[PredictRequest]) -> list[Buffer]:
        """The reply to a batch, as buffers to be written in this order.

        Whatever the handler raises is answered, except for the ends of a process (SystemExit).
        """
        context = self._context
        data, request_ids = self.open_batch(batch, context)
        started_s = time.perf_counter()
        try:
            ret = self._entry_point(data, context)
            if has_streams(ret):
                ret = drain(ret, request_ids, context)
        except Exception as error:
            return raised_reply(request_ids, error, context)
        return self.batch_reply(ret, request_ids, context, started_s)

    def open_batch(
        self, batch: Sequence[PredictRequest], context: Context
    ) -> tuple[list[dict[str, Any]], dict[int, str]]:
        """What the handler gets as `data`, and the request ids; sets the context to this batch."""
        is_decoding = self._is_decoding
        data = []
        request_ids = {}
        processors = []
        for index, (request_id, headers, parts) in enumerate(batch):
            request_ids[index] = request_id.decode()
            row: dict[str, Any] = {}
            request_header: dict[str, Any] = {}
            for raw_name, raw_type, body in parts:
                name = decode_text(raw_name)
                if raw_type:
                    content_type = decode_text(raw_type)
                    row[name] = decode_value(content_type, body) if is_decoding else body
                    request_header[name] = {"content-type": content_type}
                else:
                    row[name] = body
                    request_header[name] = {"content-type": ""}
            if headers is not self._last_headers:
                self._last_headers = headers
                self._last_texts = _decode_headers(headers)
            request_header.update(self._last_texts)
            data.append(row)
            processors.append(RequestProcessor(request_header))
        context.request_ids = request_ids
        context._request_processor = processors
        if context._metrics is not None:
            context._metrics.set_request_ids(request_ids)
        return data, request_ids

    def batch_reply(
        self, ret: Any, request_ids: dict[int, str], context: Context, started_s: float
    ) -> list[Buffer]:
        """The reply for what the handler returned."""
        if inspect.iscoroutine(ret):
            ret.close()
            complaint = "a coroutine: asynchronous handlers need asyncCommunication: true"
            message = "an asynchronous handler needs asyncCommunication: true"
            return _output_failure(
                request_ids, complaint, f"Invalid model predict output: {message}"
            )
        if not isinstance(ret, list):
            complaint = f"a {type(ret).__name__} instead of a list"
            return _output_failure(request_ids, complaint, "Invalid model predict output")
        if len(ret) != len(request_ids):
            complaint = f"{len(ret)} items for {len(request_ids)} requests"
            return _output_failure(request_ids, complaint, "number of batch response mismatched")
        try:
            if context._metrics is not None:
                self._emit_prediction_time(context._metrics, started_s)
            return encode_batch_reply(ret, request_ids, SUCCESS_MESSAGE, 200, context)
        except Exception as error:  # a stopping criterion, or headers that are no text
            return raised_reply(request_ids, error, context)

    def _emit_prediction_time(self, metrics: Any, started_s: float) -> None:
        """The metric of a batch, but not of each of thousands a second: a gauge has one value."""
        now_s = time.perf_counter()
        if now_s >= self._next_prediction_time_s:
            self._next_prediction_time_s = now_s + PREDICTION_METRIC_INTERVAL_S
            metrics.add_time(PREDICTION_METRIC, round((now_s - started_s) * 1000, 2))


def raised_reply(request_ids: dict[int, str], error: Exception, context: Context) -> list[Buffer]:
    """The reply for what a handler raised while it worked on a batch.

    RequestCancelled ends a batch for which nobody waits. While somebody does, it is a failure like
    any other: the frontend then runs those who wait again, without the cancelled ones.
    """
    if isinstance(error, RequestCancelled) and context.is_cancelled():
        return cancelled_reply(request_ids)
    return failure_reply(request_ids, error)


def failure_reply(request_ids: dict[int, str], error: BaseException) -> list[Buffer]:
    """The reply to a batch that failed; the traceback goes to the model's log."""
    logger.warning(
        "The handler failed for request %s:",
        ", ".join(request_ids.values()),
        exc_info=(type(error), error, error.__traceback__),
    )
    if isinstance(error, UnsupportedOutput):  # of a generator
        return encode_failure(request_ids, UNSUPPORTED_OUTPUT, 503)
    if isinstance(error, PredictionException):
        return encode_failure(request_ids, str(error.message), int(error.error_code))
    # CUDA's own out-of-memory errors have no type that could be asked for without torch.
    if isinstance(error, MemoryError) or "CUDA" in str(error):
        return encode_failure(request_ids, "Out of resources", 507)
    return encode_failure(request_ids, "Prediction failed", 503)


def cancelled_reply(request_ids: dict[int, str]) -> list[Buffer]:
    """The reply to a batch that was stopped, or not begun, because nobody waits for it."""
    logger.info("Stopped, as nobody waits for it: request %s.", ", ".join(request_ids.values()))
    return encode_failure(request_ids, "Request cancelled", CANCELLED_STATUS)


def _output_failure(request_ids: dict[int, str], complaint: str, message: str) -> list[Buffer]:
    logger.warning(
        "The handler returned %s (request %s).", complaint, ", ".join(request_ids.values())
    )
    return encode_failure(request_ids, message, 503)


def _decode_headers(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    texts = {}
    for raw_name, raw_value in headers:
        try:
            texts[raw_name.decode()] = raw_value.decode()
        except UnicodeDecodeError:
            texts[decode_text(raw_name)] = decode_text(raw_value)
    return texts


def decode_text(raw: bytes) -> str:
    """UTF-8, or Latin-1 where it is none: HTTP headers may carry any byte."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def read_model_config(model_dir: str, manifest: dict[str, Any] | None) -> Any:
    """The archive's own configuration: {} without a file, None for an empty one."""
    config_file = ((manifest or {}).get("model") or {}).get("configFile")
    return get_yaml_config(f"{model_dir}/{config_file}") if config_file else {}


def ids_of(batch: Sequence[PredictRequest]) -> dict[int, str]:
    """The request ids by their place in the batch, as text."""
    return {index: bytes(request.id).decode() for index, request in enumerate(batch)}


def emit_metrics(metrics: Sequence[Any]) -> None:
    """Write a metrics line for each item."""
    for metric in metrics:
        logger.info(f"[METRICS]{metric}")
