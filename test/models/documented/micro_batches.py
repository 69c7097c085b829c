"""Micro-batching as its example shows it: `self.handle` becomes a MicroBatching object."""

import torch

from ts.handler_utils.micro_batching import MicroBatching
from ts.torch_handler.base_handler import BaseHandler


class MicroBatchingHandler(BaseHandler):
    def __init__(self):
        super().__init__()
        self.handle = MicroBatching(self)

    def initialize(self, context):
        super().initialize(context)
        config = context.model_yaml_config["micro_batching"]
        self.handle.micro_batch_size = config["micro_batch_size"]
        self.handle.parallelism = config["parallelism"]

    def preprocess(self, data):
        values = [[float(row["body"].decode()), 1.0] for row in data]
        return torch.tensor(values, device=self.device)

    def postprocess(self, data):
        return [row[0] for row in data.tolist()]
