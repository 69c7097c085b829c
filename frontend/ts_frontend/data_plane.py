"""The data plane: what clients of a model may ask. Every dialect comes through here."""

from __future__ import annotations

import asyncio

from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import NoWorker, QueueFull
from ts_frontend.core.inference import DESCRIBE_HEADER, InferenceRequest
from ts_frontend.core.job import Command, Job
from ts_frontend.core.model import Model, ModelStatus
from ts_frontend.core.registry import ModelRegistry
from ts_frontend.core.response_stream import ResponseStream


class DataPlane:
    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    def resolve(self, name: str, version: str | None = None) -> Model:
        """Raises ModelNotFound, ModelVersionNotFound."""
        return self._registry.resolve(name, version)

    def predict(
        self,
        name: str,
        version: str | None,
        request: InferenceRequest,
        *,
        arrived_s: float | None = None,
        deadline_s: float | None = None,
    ) -> ResponseStream:
        """Let `request` wait for the model; the stream brings its answer. (Explaining is a request
        header.)

        arrived_s:  when it came, seconds on the monotonic clock; now if not given.
        deadline_s: when its client gives up, same clock; the model's clientTimeoutInMills applies
                    besides.
        Raises ModelNotFound, ModelVersionNotFound, NoWorker, QueueFull: nothing is kept then.
        """
        model = self._registry.resolve(name, version)
        meters = model.default_meters if version is None else model.meters
        if meters is not None:
            meters.requests.value += 1
        workers = model.workers
        if (
            workers is None
            or not workers.can_serve
            or model.status is ModelStatus.UNREGISTERING
            or (model.config.use_job_ticket and not workers.has_idle_worker)
        ):
            raise NoWorker.to_predict(name, version)
        if arrived_s is None:
            arrived_s = monotonic()
        if model.config.client_timeout_ms:
            own_deadline_s = arrived_s + model.config.client_timeout_ms / 1000
            deadline_s = own_deadline_s if deadline_s is None else min(deadline_s, own_deadline_s)
        job = Job(request, arrived_s, deadline_s=deadline_s, meters=meters)
        try:
            model.queue.put(job)
        except QueueFull:
            raise QueueFull(NoWorker.to_predict(name, version).message) from None
        if deadline_s is not None:
            left_s = max(0.0, deadline_s - monotonic())
            job.timer = asyncio.get_running_loop().call_later(left_s, job.expire)
        return job.response

    def describe(self, model: Model, request_id: bytes) -> ResponseStream:
        """Ask the handler itself what it is (`describe_handle`). Raises NoWorker."""
        if model.workers is None or not model.workers.can_serve:
            raise NoWorker.to_describe(model.id.name)
        job = Job(
            InferenceRequest(request_id, [DESCRIBE_HEADER], []),
            monotonic(),
            command=Command.DESCRIBE,
        )
        try:
            model.queue.put(job)
        except QueueFull:
            raise NoWorker.to_describe(model.id.name) from None
        return job.response
