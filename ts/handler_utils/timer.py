"""How long the stages of a handler take, if the model's configuration asks (`handler.profile`)."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Emit `ts_handler_<name>` in ms for a method of an object with a `context`.

    Measured with CUDA events where CUDA is at hand, since a kernel's call returns before it ran.
    """

    @functools.wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = getattr(self.context, "model_yaml_config", None) if self.context else None
        if not (config and (config.get("handler") or {}).get("profile")):
            return function(self, *args, **kwargs)
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            result = function(self, *args, **kwargs)
            end.record()
            torch.cuda.synchronize()
            elapsed_ms = start.elapsed_time(end)
        else:
            began_s = time.perf_counter()
            result = function(self, *args, **kwargs)
            elapsed_ms = (time.perf_counter() - began_s) * 1000
        self.context.metrics.add_time(f"ts_handler_{function.__name__}", elapsed_ms, unit="ms")
        return result

    return call
