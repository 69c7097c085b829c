"""Between TorchServe's HTTP forms and the core's values: plain functions, no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import yaml

from ts_frontend.control_plane import (
    FailureReport,
    ModelReport,
    Registration,
    Scaled,
    WorkerReport,
)
from ts_frontend.core.errors import InvalidArgument
from ts_frontend.core.traffic import Summary
from ts_frontend.dialects.torchserve.schema import (
    FailureItem,
    ModelDescription,
    QueueStatus,
    ResidencyItem,
    RolloutFigures,
    RolloutItem,
    RolloutStep,
    WorkerItem,
)
from ts_frontend.http.request import Body, HttpRequest
from ts_frontend.residency import ResidencyReport
from ts_frontend.rollout.rollout import RolloutReport

DEFAULT_PAGE = 100
# The lenient reader is slow, and the event loop waits for it.
MAX_LENIENT_BYTES = 16 << 10


def int_or(text: Any, default: int | None) -> int | None:
    """TorchServe takes text for numbers, and its default for what is none."""
    if isinstance(text, bool):
        return default
    try:
        return int(text)
    except (TypeError, ValueError, OverflowError):
        return default


def is_true(value: Any, default: bool) -> bool:
    return default if value is None else str(value).strip().lower() == "true"


def parameters(request: HttpRequest) -> Mapping[str, Any]:
    """What a management verb was given: the query's texts, or the values of a JSON object.

    Raises InvalidArgument.
    """
    if request.content_type == b"application/json":
        return _json_object(request.body)
    return dict(request.query_params())


def registration(request: HttpRequest) -> Registration:
    """`POST /models`: parameters from the query, or from a JSON object. Raises InvalidArgument."""
    values = parameters(request)
    url = values.get("url")
    if url is None:
        raise InvalidArgument("Parameter url is required.")
    response_timeout_s = int_or(values.get("response_timeout"), -1)
    startup_timeout_s = int_or(values.get("startup_timeout"), -1)
    return Registration(
        url=str(url),
        model_name=_text(values.get("model_name")),
        handler=_text(values.get("handler")),
        runtime=_text(values.get("runtime")),
        batch_size=int_or(values.get("batch_size"), None),
        max_batch_delay_ms=int_or(values.get("max_batch_delay"), None),
        response_timeout_s=None if response_timeout_s == -1 else response_timeout_s,
        startup_timeout_s=None if startup_timeout_s == -1 else startup_timeout_s,
        initial_workers=int_or(values.get("initial_workers"), None),
        is_synchronous=is_true(values.get("synchronous"), True),
        s3_sse_kms=is_true(values.get("s3_sse_kms"), False),
    )


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _json_object(body: Body) -> Mapping[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise InvalidArgument("The body is nested too deeply.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as strict:
        value = _lenient_json(body)
        if not isinstance(value, dict):
            raise InvalidArgument(f"The body is not a JSON object: {strict}") from None
    if not isinstance(value, dict):
        raise InvalidArgument("The body is not a JSON object.")
    return value


def _lenient_json(body: Body) -> Any:
    """TorchServe's JSON reader takes single quotes too; YAML's flow style reads the same texts.

    None for what is none of them.
    """
    if len(body) > MAX_LENIENT_BYTES:
        return None
    try:
        return _FlowLoader(bytes(body).decode()).get_single_data()
    # PyYAML lets KeyError, IndexError and more out of its constructors for odd scalars.
    except Exception:
        return None


class _FlowLoader(yaml.SafeLoader):
    """Without aliases, by which a short text stands for a huge one; JSON has none."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(problem="an alias")
        return super().compose_node(parent, index)


def page_bounds(request: HttpRequest) -> tuple[int, int]:
    """limit and offset of a listing; whatever is out of range becomes the default."""
    query = dict(request.query_params())
    limit = int_or(query.get("limit"), DEFAULT_PAGE)
    if limit is None or not 0 <= limit <= DEFAULT_PAGE:
        limit = DEFAULT_PAGE
    offset = int_or(query.get("next_page_token"), 0)
    return limit, offset if offset is not None and offset >= 0 else 0


def registered_text(scaled: Scaled) -> tuple[int, str]:
    """How a registration went: the HTTP status, and in words."""
    name, version = scaled.model.id
    if scaled.is_lazy:
        return 200, (
            f'Model "{name}" Version: {version} registered; its first request loads it, '
            f"with {scaled.workers} workers"
        )
    if scaled.workers == 0:
        return 200, (
            f'Model "{name}" Version: {version} registered with 0 initial workers. '
            "Use scale workers API to add workers for the model."
        )
    return _outcome(
        scaled,
        f'Model "{name}" Version: {version} registered with {scaled.workers} initial workers',
    )


def scaled_text(
    scaled: Scaled, name: str, version: str | None, min_workers: int | None
) -> tuple[int, str]:
    """How a scaling went: the HTTP status, and in words, the client's own for the version."""
    suffix = f", version: {version}" if version is not None else ""
    return _outcome(scaled, f"Workers scaled to {min_workers} for model: {name}{suffix}")


def _outcome(scaled: Scaled, done: str) -> tuple[int, str]:
    if not scaled.is_synchronous:
        return 202, "Processing worker updates..."
    if not scaled.is_complete:
        return 206, "Workers scaling in progress..."
    return 200, done


def default_set_text(name: str, version: str) -> str:
    return f'Default version successfully updated for model "{name}" to "{version}"'


def unregistered_text(name: str) -> str:
    return f'Model "{name}" unregistered'


def describe(
    report: ModelReport, metadata: dict[str, Any] | None = None, *, has_local_times: bool = False
) -> ModelDescription:
    """has_local_times: as TorchServe, which prints local time and marks it as UTC."""
    model, config = report.model, report.model.config
    has_sequences = config.sequence_max_idle_ms > 0
    return ModelDescription(
        model_name=model.id.name,
        model_version=model.id.version,
        model_url=model.url,
        runtime=model.runtime,
        min_workers=report.min_workers,
        max_workers=report.max_workers,
        batch_size=config.batch_size,
        max_batch_delay=config.max_batch_delay_ms,
        response_timeout=int(config.response_timeout_s),
        startup_timeout=int(config.startup_timeout_s),
        max_retry_timeout_in_sec=int(config.max_retry_timeout_s),
        client_timeout_in_mills=config.client_timeout_ms,
        parallel_type=config.parallel_type.value,
        parallel_level=config.parallel_level,
        device_type=config.device_type,
        device_ids=msgspec.UNSET if config.device_ids is None else list(config.device_ids),
        continuous_batching=config.continuous_batching,
        use_job_ticket=config.use_job_ticket,
        use_venv=config.use_venv,
        stateful=config.sequence_batching,
        sequence_max_idle_m_sec=config.sequence_max_idle_ms if has_sequences else 0,
        sequence_timeout_m_sec=config.sequence_timeout_ms if has_sequences else 0,
        max_num_sequence=config.max_num_sequence if has_sequences else 0,
        max_sequence_job_queue_size=config.max_sequence_job_queue_size if has_sequences else 0,
        loaded_at_startup=model.is_loaded_at_startup,
        workers=[_worker_item(worker, has_local_times) for worker in report.workers],
        job_queue_status=QueueStatus(model.queue.remaining_capacity, len(model.queue)),
        customized_metadata=msgspec.UNSET if metadata is None else metadata,
        unhealthy_reason=report.unhealthy_reason or msgspec.UNSET,
        residency=msgspec.UNSET if report.residency is None else _residency(report.residency),
    )


def rollout_item(report: RolloutReport) -> RolloutItem:
    return RolloutItem(
        model_name=report.name,
        current_version=report.current_version,
        new_version=report.new_version,
        state=report.state.value,
        reason=report.reason,
        percent=report.percent,
        waits_for=report.waits_for,
        start_time=_time_text(report.started_at, time.gmtime),
        end_time=_time_text(report.ended_at, time.gmtime) if report.ended_at else "",
        figures={"newVersion": _figures(report.new), "currentVersion": _figures(report.current)},
        moved_requests=report.moved,
        skipped_copies=report.skipped,
        differing_copies=report.differing,
        steps=[
            RolloutStep(
                step.state.value,
                step.percent,
                _time_text(step.started_at, time.gmtime),
                round(step.seconds, 3),
                _figures(step.new),
                _figures(step.current),
            )
            for step in report.steps
        ],
        plan=msgspec.to_builtins(report.plan),
    )


def _figures(summary: Summary) -> RolloutFigures:
    return RolloutFigures(
        summary.requests, summary.failures, round(summary.p50_ms, 3), round(summary.p99_ms, 3)
    )


def _residency(report: ResidencyReport) -> ResidencyItem:
    return ResidencyItem(
        report.state.value, report.memory_bytes, report.loads, round(report.idle_s, 3)
    )


def _worker_item(worker: WorkerReport, has_local_times: bool) -> WorkerItem:
    return WorkerItem(
        id=str(worker.id),
        start_time=_time_text(
            worker.started_at, time.localtime if has_local_times else time.gmtime
        ),
        status="READY" if worker.is_ready else "UNLOADING",
        memory_usage=worker.memory_bytes,
        pid=worker.pid,
        gpu=worker.gpu is not None,
        gpu_usage="N/A" if worker.gpu is None else worker.gpu_usage,
        restarts=worker.restarts or msgspec.UNSET,
        last_failure=msgspec.UNSET if worker.failure is None else _failure(worker.failure),
    )


def _failure(failure: FailureReport) -> FailureItem:
    return FailureItem(
        cause=failure.cause,
        reason=failure.reason,
        exit_code=failure.exit_code,
        signal=failure.signal,
        exception=failure.exception,
        is_lasting=failure.is_lasting,
        last_lines=list(failure.last_lines),
    )


def _time_text(epoch_s: float, broken_down: Callable[[float], time.struct_time]) -> str:
    return (
        time.strftime("%Y-%m-%dT%H:%M:%S", broken_down(epoch_s))
        + f".{int(epoch_s * 1000) % 1000:03d}Z"
    )
