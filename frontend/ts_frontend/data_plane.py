"""The data plane: what clients of a model may ask. Every dialect comes through here."""

from __future__ import annotations

import asyncio

from ts_frontend.core.admission import Admission, check_deadline
from ts_frontend.core.clock import monotonic
from ts_frontend.core.errors import ErrorKind, NoWorker, QueueFull, ServingError
from ts_frontend.core.inference import DESCRIBE_HEADER, InferenceRequest
from ts_frontend.core.job import PREDICT, Command, Job
from ts_frontend.core.model import Model, ModelStatus
from ts_frontend.core.registry import ModelRegistry
from ts_frontend.core.response_stream import ResponseStream
from ts_frontend.core.traffic import Traffic


class DataPlane:
    def __init__(self, registry: ModelRegistry, admission: Admission | None = None) -> None:
        self._registry = registry
        self._admission = Admission() if admission is None else admission

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
        model: Model | None = None,
    ) -> ResponseStream:
        """Let `request` wait for the model; the stream brings its answer. (Explaining is a request
        header.)

        arrived_s:  when it came, seconds on the monotonic clock; now if not given.
        deadline_s: when its client gives up, same clock; its deadline header and the model's
                    clientTimeoutInMills apply besides.
        model:      what `name` and `version` stand for, where that is decided already.
        Raises ModelNotFound, ModelVersionNotFound, InvalidArgument, NoWorker, QueueFull,
        ServerBusy, DeadlineUnreachable, DeadlineExceeded: nothing is kept then.
        """
        if model is None:
            model = self._registry.resolve(name, version)
            if version is None and model.traffic is not None:
                return self._predict_on_trial(model.traffic, name, request, arrived_s, deadline_s)
        meters = model.default_meters if version is None else model.meters
        if meters is not None:
            meters.requests.value += 1
        workers = model.workers
        if workers is not None and not workers.can_serve:
            raise NoWorker.to_predict(name, version, workers.failure_cause)
        if (
            workers is None
            or model.status is ModelStatus.UNREGISTERING
            or (model.config.use_job_ticket and not workers.has_idle_worker)
        ):
            raise NoWorker.to_predict(name, version)
        admission = self._admission
        if arrived_s is None:
            arrived_s = monotonic()
        wait_s = admission.deadline_headers.read_s(request.headers)
        if wait_s is not None:
            deadline_s = _earlier(deadline_s, arrived_s + wait_s)
        if model.config.client_timeout_ms:
            deadline_s = _earlier(deadline_s, arrived_s + model.config.client_timeout_ms / 1000)
        try:
            if deadline_s is not None:
                check_deadline(model, workers, deadline_s, monotonic())
            if admission.load is None:
                # By position: names cost a dictionary.
                job = Job(request, arrived_s, PREDICT, deadline_s, meters)
            else:
                job = admission.load.new_job(request, arrived_s, deadline_s, meters)
            try:
                model.queue.put(job)
            except NoWorker as refusal:
                job.response.cancel()
                refusal.say(NoWorker.to_predict(name, version).message)
                raise
        except ServingError as error:
            if error.kind is ErrorKind.OVERLOADED:
                error.kind = admission.overload_kind
                model.queue.watch_times()
                error.retry_after_s = model.queue.predict_s(workers.ready_count) or 1.0
            raise
        if deadline_s is not None:
            left_s = max(0.0, deadline_s - monotonic())
            job.timer = asyncio.get_running_loop().call_later(left_s, job.expire)
        return job.response

    def _predict_on_trial(
        self,
        traffic: Traffic,
        name: str,
        request: InferenceRequest,
        arrived_s: float | None,
        deadline_s: float | None,
    ) -> ResponseStream:
        """A version of `name` is on trial. What it gets counts as its own in the metrics."""
        if arrived_s is None:
            arrived_s = monotonic()  # once, also where both versions get it: its time is one

        def enter(model: Model) -> ResponseStream:
            version = model.id.version if model is traffic.candidate else None
            return self.predict(
                name, version, request, arrived_s=arrived_s, deadline_s=deadline_s, model=model
            )

        return traffic.predict(request, enter)

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


def _earlier(deadline_s: float | None, other_s: float) -> float:
    return other_s if deadline_s is None else min(deadline_s, other_s)
