"""A registered model version: what it is, how it is run, what waits for it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ts_frontend.core.batch_queue import BatchQueue
from ts_frontend.core.batching import AdaptiveBatching, BatchPolicy, DynamicBatching
from ts_frontend.core.fair_order import Fairness, FairOrder
from ts_frontend.core.job import JobMeters
from ts_frontend.core.self_test import SelfTest
from ts_frontend.core.sequence_queue import SequenceHeaders, SequenceLimits, SequenceQueue

if TYPE_CHECKING:
    from ts_frontend.core.traffic import Traffic


class ModelId(NamedTuple):
    """`version` is always concrete; "the default" exists only before `ModelRegistry.resolve`."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}_{self.version}"  # as worker names and log lines have it


class ParallelType(enum.Enum):
    NONE = ""
    PIPELINE = "pp"
    TENSOR = "tp"
    PIPELINE_TENSOR = "pptp"
    CUSTOM = "custom"


@dataclass(frozen=True, slots=True)
class TorchrunConfig:
    nnodes: int = 1
    nproc_per_node: int = 1
    rdzv_backend: str = "c10d"
    rdzv_endpoint: str = ""
    rdzv_conf: str = ""
    monitor_interval_s: int | None = None
    node_rank: int | None = None
    omp_threads: int = 1


class Batching(enum.Enum):
    """How batches are formed: by max_batch_delay_ms, or by target_latency_ms."""

    DYNAMIC = "dynamic"
    ADAPTIVE = "adaptive"


class TensorSpec(NamedTuple):
    """A tensor that a model takes or gives, as its archive declares it.

    datatype: a name of the Open Inference Protocol ("FP32").
    shape:    -1 stands for any length.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WorkerCare:
    """What becomes of requests whose worker fails, and when a worker is replaced.

    is_idempotent:  the handler may see a request twice; without it nothing is run again.
    death_retries:  how often a request runs again whose worker died before any output.
    is_isolating:   a batch that the handler failed is cut, so that only the guilty requests fail.
    ping_timeout_s: how long an idle worker may take to answer a ping.
    cancel_grace_s: how long a handler may go on whose clients have all left; 0: for ever.
    max_requests, max_age_s, max_memory_bytes: a worker that has reached one of them is replaced;
                    0: no limit.
    """

    is_idempotent: bool = True
    death_retries: int = 1
    is_isolating: bool = True
    ping_timeout_s: float = 30
    cancel_grace_s: float = 0
    max_requests: int = 0
    max_age_s: float = 0
    max_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """When the number of workers changes between min_workers and max_workers, where they differ.

    wait_s: a request that waits longer calls for another worker.
    idle_s: what was not needed for so long goes.
    """

    wait_s: float = 0.1
    idle_s: float = 60


@dataclass(frozen=True, slots=True)
class Containment:
    """What a worker's process may do and take; 0 and False: no limit of ours.

    address_space_bytes: all that it maps, not only what is in memory (RLIMIT_AS).
    cpu_s:               processor time of its whole life (RLIMIT_CPU); it is ended after that.
    has_own_temp_dir:    its temporary folder is its own, and is removed with it.
    is_offline:          it has a network of its own with nothing in it but itself.
    is_unprivileged:     no program that it starts has more rights than it has.
    """

    address_space_bytes: int = 0
    cpu_s: int = 0
    open_files: int = 0
    file_bytes: int = 0
    has_own_temp_dir: bool = False
    is_offline: bool = False
    is_unprivileged: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How one version is run. Frozen: a scale or a re-register makes a new one.

    Defaults are TorchServe's (contract, config sections 3 and 6).
    """

    min_workers: int = 0
    max_workers: int = 0
    batch_size: int = 1
    max_batch_delay_ms: int = 100
    batching: Batching = Batching.DYNAMIC
    target_latency_ms: int = 100  # of adaptive batching
    fairness: Fairness | None = None  # None: first come, first served
    response_timeout_s: float = 120
    startup_timeout_s: float = 120
    max_retry_timeout_s: float = 300
    client_timeout_ms: int = 0  # 0: clients wait for ever
    job_queue_size: int = 100
    device_type: str = "cpu"  # "cpu" or "gpu"
    device_ids: tuple[int, ...] | None = None
    parallel_type: ParallelType = ParallelType.NONE
    parallel_level: int = 0
    torchrun: TorchrunConfig | None = None
    use_job_ticket: bool = False
    use_venv: bool = False
    async_communication: bool = False
    continuous_batching: bool = False
    sequence_batching: bool = False
    sequence_max_idle_ms: int = 0
    sequence_timeout_ms: int = 0
    max_num_sequence: int = 1
    max_sequence_job_queue_size: int = 1
    sequence_headers: SequenceHeaders = SequenceHeaders()  # noqa: RUF009 - frozen
    care: WorkerCare = WorkerCare()
    autoscaling: Autoscaling = Autoscaling()
    containment: Containment = Containment()
    worker_start: str = ""  # "spawn" or "fork"; empty: as the server does
    is_lazy: bool = False  # loaded by its first request
    idle_unload_s: float = 0  # 0: stays loaded
    inputs: tuple[TensorSpec, ...] = ()  # empty: not declared
    outputs: tuple[TensorSpec, ...] = ()


class ModelStatus(enum.Enum):
    REGISTERED = "registered"
    UNREGISTERING = "unregistering"


class Workers(Protocol):
    """What the data plane asks of a model's workers before it lets a request wait."""

    @property
    def can_serve(self) -> bool: ...

    @property
    def failure_cause(self) -> str:
        """A word for why there is nobody who can serve; "" if none has failed."""

    @property
    def has_idle_worker(self) -> bool: ...

    @property
    def ready_count(self) -> int:
        """How many workers share the work now."""
        ...


class Model:
    """One version: its archive's facts, its configuration and its queue.

    path:    the directory that workers run in.
    url:     what it was registered with; the archive's file name is `archive_name`.
    python:  the interpreter that was prepared for it, "" for the server's.
    packages: the folder of packages that was prepared for it, "" if none was.
    meters:  its counters, under its own version and under "default" (requests that named none).
    self_test:   what each of its workers has to answer before it serves; None: nothing.
    traffic:     while it is the default version and another one is on trial: who gets what.
    is_on_trial: a rollout has registered it, and it is gone again if that fails.
    """

    __slots__ = (
        "__weakref__",
        "archive_name",
        "config",
        "default_meters",
        "envelope",
        "handler",
        "id",
        "is_loaded_at_startup",
        "is_on_trial",
        "meters",
        "packages",
        "path",
        "python",
        "queue",
        "runtime",
        "self_test",
        "status",
        "traffic",
        "url",
        "workers",
    )

    def __init__(
        self,
        model_id: ModelId,
        config: ModelConfig,
        *,
        path: str,
        handler: str,
        url: str = "",
        archive_name: str = "",
        runtime: str = "python",
        envelope: str = "",
        is_loaded_at_startup: bool = False,
    ) -> None:
        self.id = model_id
        self.config = config
        self.path = path
        self.handler = handler
        self.url = url
        self.archive_name = archive_name
        self.runtime = runtime
        self.envelope = envelope
        self.is_loaded_at_startup = is_loaded_at_startup
        self.python = ""
        self.packages = ""
        self.status = ModelStatus.REGISTERED
        self.queue = new_queue(config)
        self.workers: Workers | None = None
        self.meters: JobMeters | None = None
        self.default_meters: JobMeters | None = None
        self.self_test: SelfTest | None = None
        self.traffic: Traffic | None = None
        self.is_on_trial = False

    def __repr__(self) -> str:
        return (
            f"<Model {self.id.name}/{self.id.version} {self.status.name} waiting={len(self.queue)}>"
        )


def new_queue(config: ModelConfig) -> BatchQueue:
    """An empty queue that batches and orders as `config` says."""
    policy: BatchPolicy
    if config.batching is Batching.ADAPTIVE:
        policy = AdaptiveBatching(config.batch_size, config.target_latency_ms / 1000)
    else:
        policy = DynamicBatching(config.batch_size, config.max_batch_delay_ms / 1000)
    if config.sequence_batching:
        return SequenceQueue(
            policy,
            config.job_queue_size,
            SequenceLimits(
                config.sequence_max_idle_ms / 1000,
                config.sequence_timeout_ms / 1000,
                config.max_num_sequence,
                config.max_sequence_job_queue_size,
                config.sequence_headers,
            ),
        )
    order = None if config.fairness is None else FairOrder(config.fairness)
    return BatchQueue(policy, config.job_queue_size, order)
