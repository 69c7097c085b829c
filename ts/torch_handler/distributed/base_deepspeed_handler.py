"""Base of handlers that run a model with DeepSpeed, one process per rank."""

from __future__ import annotations

import os
from abc import ABC
from typing import Any

from ts.torch_handler.base_handler import BaseHandler


class BaseDeepSpeedHandler(BaseHandler, ABC):
    """Knows its device; a subclass builds the engine (`ts.handler_utils.distributed.deepspeed`)."""

    def initialize(self, ctx: Any) -> None:
        """Set the device to this process's rank on the machine."""
        self.device = int(os.environ.get("LOCAL_RANK", 0))
