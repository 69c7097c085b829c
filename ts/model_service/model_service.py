"""The base classes of the oldest archives: preprocess, inference, postprocess."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from typing import Any

logger = logging.getLogger(__name__)


class ModelService(ABC):
    """A service that knows its context and answers batches."""

    def __init__(self) -> None:
        self.context: Any = None
        self.initialized = False

    def initialize(self, context: Any) -> None:
        """Called once, when the model starts."""
        self.context = context
        self.initialized = True

    @abstractmethod
    def handle(self, data: Any, context: Any) -> Any:
        """The answers to a batch: one item per request."""


class SingleNodeService(ModelService):
    """Answers in three steps, each of which a subclass may replace."""

    def handle(self, data: Any, context: Any) -> Any:
        """The answers to a batch; emits the time of each step in milliseconds."""
        self.context = context
        result = data
        for metric, step in (
            ("PreprocessTime", self.preprocess),
            ("InferenceTime", self.inference),
            ("PostprocessTime", self.postprocess),
        ):
            started_s = time.perf_counter()
            result = step(result)
            if context is not None and context.metrics is not None:
                duration_ms = round((time.perf_counter() - started_s) * 1000, 2)
                context.metrics.add_time(metric, duration_ms)
        return result

    def preprocess(self, data: Any) -> Any:
        """The model's input for what the requests carry."""
        return data

    @abstractmethod
    def inference(self, data: Any) -> Any:
        """The model's output."""

    def postprocess(self, data: Any) -> Any:
        """One item per request."""
        return data
