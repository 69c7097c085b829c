"""The custom handler of the documentation: a subclass of BaseHandler with its own three steps."""

import json
import logging

import torch

from ts.torch_handler.base_handler import BaseHandler

logger = logging.getLogger(__name__)


class ModelHandler(BaseHandler):
    def __init__(self):
        super().__init__()
        self.batches = 0

    def initialize(self, context):
        super().initialize(context)
        logger.info("started on %s from %s", self.device, context.system_properties["model_dir"])

    def preprocess(self, data):
        self.batches += 1
        rows = []
        for row in data:
            value = row.get("data") or row.get("body")
            if isinstance(value, (bytes, bytearray)):
                value = json.loads(value)
            rows.append(value)
        return torch.tensor(rows, dtype=torch.float32, device=self.device)

    def postprocess(self, data):
        return [{"values": row, "labels": self.mapping} for row in data.tolist()]

    def describe_handle(self):
        return {"inputs": 2, "batches": self.batches}
