"""The base classes of the oldest archives: a service with three steps behind `inference`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any


class ModelService(ABC):
    """A service that knows its context and answers batches.

    The loader makes handlers without arguments; the arguments are for code that makes services by
    itself.
    """

    def __init__(
        self,
        model_name: str | None = None,
        model_dir: str | None = None,
        manifest: dict[str, Any] | None = None,
        gpu: int | None = None,
    ) -> None:
        self.model_name = model_name
        self.model_dir = model_dir
        self.manifest = manifest
        self.gpu = gpu
        self.context: Any = None
        self.initialized = False

    def initialize(self, context: Any) -> None:
        """Called once, when the model starts."""
        self.context = context
        self.initialized = True

    @abstractmethod
    def inference(self, data: Any) -> Any:
        """The answers to a batch: one item per request."""

    def handle(self, data: Any, context: Any) -> Any:
        """`inference` for a batch and its context."""
        self.context = context
        return self.inference(data)

    def ping(self) -> None:
        """Called to see that the service is there; override to check more."""
        return None

    def signature(self) -> Any:
        """What goes in and out, for those who ask; None if the service does not say."""
        return None


class SingleNodeService(ModelService):
    """Answers in three steps, each of which a subclass may replace."""

    def inference(self, data: Any) -> Any:
        """The answers to a batch; emits the time of each step in milliseconds."""
        result = data
        for metric, step in (
            ("PreprocessTime", self._preprocess),
            ("InferenceTime", self._inference),
            ("PostprocessTime", self._postprocess),
        ):
            started_s = time.perf_counter()
            result = step(result)
            if self.context is not None and self.context.metrics is not None:
                duration_ms = round((time.perf_counter() - started_s) * 1000, 2)
                self.context.metrics.add_time(metric, duration_ms)
        return result

    def _preprocess(self, data: Any) -> Any:
        """The model's input for what the requests carry."""
        return data

    def _inference(self, data: Any) -> Any:
        """The model's output."""
        return data

    def _postprocess(self, data: Any) -> Any:
        """One item per request."""
        return data
