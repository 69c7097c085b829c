"""The JSON bodies of TorchServe's REST API, in its own spelling."""

from __future__ import annotations

from typing import Any

import msgspec


class StatusBody(msgspec.Struct):
    status: str


class NotReadyItem(msgspec.Struct, rename="camel"):
    model_name: str
    model_version: str
    reason: str


class NotReadyBody(msgspec.Struct):
    status: str
    models: list[NotReadyItem]


class ModelItem(msgspec.Struct, rename="camel"):
    model_name: str
    model_url: str


class ModelList(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    next_page_token: str | None = None
    models: list[ModelItem]


class FailureItem(msgspec.Struct, rename="camel", omit_defaults=True):
    """Ours: why a worker's last process ended. TorchServe's clients pass over it."""

    cause: str
    reason: str
    exit_code: int | None = None
    signal: int | None = None
    exception: str = ""
    is_lasting: bool = False
    last_lines: list[str] = []


class ResidencyItem(msgspec.Struct, rename="camel"):
    """Ours: whether a model that is loaded by its first request is loaded now."""

    state: str
    memory_usage: int
    loads: int
    idle_seconds: float


class WorkerItem(msgspec.Struct, rename="camel"):
    id: str
    start_time: str
    status: str
    memory_usage: int
    pid: int
    gpu: bool
    gpu_usage: str
    restarts: int | msgspec.UnsetType = msgspec.UNSET  # ours, as is what follows
    last_failure: FailureItem | msgspec.UnsetType = msgspec.UNSET


class QueueStatus(msgspec.Struct, rename="camel"):
    remaining_capacity: int
    pending_requests: int


class ModelDescription(msgspec.Struct, rename="camel", kw_only=True):
    """One element of `GET /models/{m}`; the order of the members is TorchServe's."""

    model_name: str
    model_version: str
    model_url: str
    runtime: str
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay: int
    response_timeout: int
    startup_timeout: int
    max_retry_timeout_in_sec: int
    client_timeout_in_mills: int
    parallel_type: str
    parallel_level: int
    device_type: str
    device_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    continuous_batching: bool
    use_job_ticket: bool
    use_venv: bool
    stateful: bool
    sequence_max_idle_m_sec: int = msgspec.field(name="sequenceMaxIdleMSec")
    sequence_timeout_m_sec: int = msgspec.field(name="sequenceTimeoutMSec")
    max_num_sequence: int
    max_sequence_job_queue_size: int
    loaded_at_startup: bool
    workers: list[WorkerItem]
    job_queue_status: QueueStatus
    customized_metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    unhealthy_reason: str | msgspec.UnsetType = msgspec.UNSET  # ours, as is what follows
    residency: ResidencyItem | msgspec.UnsetType = msgspec.UNSET


class RolloutFigures(msgspec.Struct, rename="camel"):
    """What became of one version's newest requests in one step."""

    requests: int
    failures: int
    p50_ms: float
    p99_ms: float


class RolloutStep(msgspec.Struct, rename="camel"):
    state: str
    percent: float
    start_time: str
    seconds: float
    new_version: RolloutFigures
    current_version: RolloutFigures


class RolloutItem(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """Ours: one rollout. `reason` is there if it was undone, `end_time` when it is over."""

    model_name: str
    current_version: str
    new_version: str
    state: str
    reason: str = ""
    percent: float
    waits_for: str = ""
    start_time: str
    end_time: str = ""
    figures: dict[str, RolloutFigures]
    moved_requests: int
    skipped_copies: int
    differing_copies: int
    steps: list[RolloutStep]
    plan: dict[str, Any]
