"""Planes over models without worker processes: what dialects are tested with.

The registry, the models, their queues and the data plane are the server's own; behind each queue
stands a `PlayedModel`, which does at once with every job what its test says.

    planes = FakePlanes()
    model = planes.add("echo")                    # answers with the first part's body
    model.does = fails(NoWorker.to_predict("echo", None))
    planes.planes                                 # what a dialect gets
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ts_frontend.control_plane import ModelReport, Page, Registration, Scaled
from ts_frontend.core.errors import InvalidArgument, ServingError
from ts_frontend.core.inference import ResponseChunk
from ts_frontend.core.job import Command, Job
from ts_frontend.core.model import Model, ModelConfig, ModelId
from ts_frontend.core.registry import ModelRegistry
from ts_frontend.data_plane import DataPlane
from ts_frontend.dialects.base import Planes
from ts_frontend.health import Health
from ts_frontend.metrics.catalog import MetricCatalog
from ts_frontend.metrics.server_metrics import ServerMetrics
from ts_frontend.rollout.rollouts import Rollouts

Behaviour = Callable[[Job], None]


def echoes(job: Job) -> None:
    body = job.request.parts[0].body if job.request.parts else b""
    answers(bytes(body))(job)


def answers(body: bytes, *, status: int = 200, content_type: bytes = b"") -> Behaviour:
    chunk = ResponseChunk(status, b"", content_type, [], body, True)
    return lambda job: job.push(chunk)


def streams(*bodies: bytes) -> Behaviour:
    def behaviour(job: Job) -> None:
        for index, body in enumerate(bodies):
            job.push(ResponseChunk(200, b"", b"", [], body, index == len(bodies) - 1))

    return behaviour


def fails(error: ServingError) -> Behaviour:
    return lambda job: job.fail(error)


def holds(job: Job) -> None:
    """Answers when the test says so: the job is in `jobs`."""


class PlayedModel:
    """The workers of one model version.

    jobs: all that came, in order.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.does: Behaviour = echoes
        self.jobs: list[Job] = []
        self.can_serve = True
        self.failure_cause = ""
        self.has_idle_worker = True
        self.ready_count = 1
        self.is_dormant = False
        self.unhealthy_reason = ""
        self.answers = True
        # As a pool has them.
        self.workers: list[object] = [object()]
        self.min_workers = self.max_workers = self.healthy_count = 1
        self.is_busy = self.is_dormant = False
        model.workers = self
        model.queue.on_put = self._take

    async def is_answering(self, timeout_s: float) -> bool:
        return self.answers

    def _take(self) -> None:
        batch = self.model.queue.next_batch(time.monotonic())
        if isinstance(batch, list):
            self.jobs += batch
            for job in batch:
                self.does(job)

    @property
    def requests(self) -> list[dict[str, bytes]]:
        """The parts of each job, by name."""
        return [
            {part.name.decode(): bytes(part.body) for part in job.request.parts}
            for job in self.jobs
        ]

    @property
    def headers(self) -> list[dict[str, str]]:
        return [
            {name.decode(): value.decode() for name, value in job.request.headers}
            for job in self.jobs
        ]


class FakeControl:
    """A control plane whose workers load at once; `error` is raised by the next verb."""

    def __init__(self, registry: ModelRegistry, add: Callable[..., PlayedModel]) -> None:
        self.registry = registry
        self.error: ServingError | None = None
        self.registered: list[Registration] = []
        self.scaled: list[tuple[str, str | None, int, int, bool]] = []
        self._add = add

    def _maybe_fail(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error

    async def register(self, wanted: Registration) -> Scaled:
        self._maybe_fail()
        self.registered.append(wanted)
        model = self._add(wanted.model_name or wanted.url).model
        workers = wanted.initial_workers or 0
        return Scaled(model, workers, wanted.is_synchronous or not workers, True)

    async def scale(
        self, name: str, version: str | None, low: int, high: int, is_synchronous: bool
    ) -> Scaled:
        self._maybe_fail()
        model = self.registry.resolve(name, version)
        if high < low:
            raise InvalidArgument("max_worker cannot be less than min_worker.")
        self.scaled.append((name, version, low, high, is_synchronous))
        return Scaled(model, low, is_synchronous, True)

    async def unregister(self, name: str, version: str | None = None) -> Model:
        self._maybe_fail()
        model = self.registry.check_removable(name, version)
        self.registry.remove(model)
        return model

    def set_default(self, name: str, version: str) -> None:
        self.registry.set_default(name, version)

    def list_models(self, limit: int, offset: int) -> Page:
        models = self.registry.defaults()
        end = offset + limit
        return Page(models[offset:end], str(end) if end <= len(models) else None)

    def describe(self, name: str, version: str | None = None) -> ModelReport:
        self._maybe_fail()
        return ModelReport(self.registry.resolve(name, version), 1, 1, [])

    def describe_all(self, name: str) -> list[ModelReport]:
        return [ModelReport(model, 1, 1, []) for model in self.registry.versions(name)]


class FakePlanes:
    def __init__(self, **options: Any) -> None:
        self.registry = ModelRegistry()
        self.played: dict[Model, PlayedModel] = {}
        self.control = FakeControl(self.registry, self.add)
        health: Any = Health(self.registry, self.played)  # type: ignore[arg-type]
        control: Any = self.control
        self.planes = Planes(
            data=DataPlane(self.registry),
            control=control,
            rollouts=Rollouts(control, ServerMetrics(MetricCatalog(), "host")),
            health=health,
            tokens=options.pop("tokens", None),
            render_metrics=lambda names: b"",
            version="0.13.0",
            is_open_inference_enabled=options.pop("open_inference", True),
            **options,
        )

    def add(
        self,
        name: str,
        version: str = "1.0",
        does: Behaviour = echoes,
        **config: Any,
    ) -> PlayedModel:
        model = Model(ModelId(name, version), ModelConfig(**config), path="/", handler="h.py")
        model.url = f"{name}.mar"
        self.registry.add(model)
        played = self.played[model] = PlayedModel(model)
        played.does = does
        return played


def is_describe(job: Job) -> bool:
    return job.command is Command.DESCRIBE


def bodies(chunks: Sequence[ResponseChunk]) -> list[bytes]:
    return [bytes(chunk.body) for chunk in chunks]
