"""Base of handlers that run a model as a PiPPy pipeline, one process per rank."""

from __future__ import annotations

import os
from abc import ABC
from typing import Any

import torch

from ts.handler_utils.distributed.pt_pippy import initialize_rpc_workers
from ts.torch_handler.base_handler import BaseHandler


class BasePippyHandler(BaseHandler, ABC):
    """Connects the ranks; a subclass builds the pipeline with `get_pipeline_driver`."""

    def initialize(self, ctx: Any) -> None:
        """Choose this rank's device and start its RPC."""
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        # Without a GPU there is nothing to divide the ranks over.
        self.device = self.local_rank % max(1, torch.cuda.device_count())
        initialize_rpc_workers(self.local_rank, self.world_size, ctx)
