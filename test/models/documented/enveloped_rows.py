"""Rows as any envelope gives them: values, bytes of JSON, or dicts with the values as `data`."""

import json

import torch

from ts.torch_handler.base_handler import BaseHandler


class EnvelopedRowsHandler(BaseHandler):
    def preprocess(self, data):
        rows = [row["data"] if isinstance(row, dict) else row for row in data]
        rows = [
            json.loads(row) if isinstance(row, (bytes, bytearray, str)) else row for row in rows
        ]
        return torch.tensor(rows, dtype=torch.float32, device=self.device)

    def get_insights(self, data_preprocess, inputs, target):
        return [[value * target for value in row] for row in data_preprocess.tolist()]
