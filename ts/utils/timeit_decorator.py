"""How long a call takes, for the log."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def timeit(func: Callable[..., Any]) -> Callable[..., Any]:
    """`func`, logging each call's wall-clock time in ms at INFO, also when it raises."""

    @functools.wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        began_s = time.perf_counter()
        try:
            return func(*args, **kwargs)
        finally:
            elapsed_ms = (time.perf_counter() - began_s) * 1000
            logger.info("%s took %.2f ms", func.__qualname__, elapsed_ms)

    return call
