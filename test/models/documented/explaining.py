"""An explanation of one's own: `get_insights`, and a prediction error with a status."""

import torch

from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException


class ExplainingHandler(BaseHandler):
    def preprocess(self, data):
        values = []
        for row in data:
            text = (row.get("data") or row.get("body")).decode()
            if not text.replace(".", "").isdigit():
                raise PredictionException(f"not a number: {text}", 415)
            values.append([float(text), 0.0])
        return torch.tensor(values, device=self.device)

    def postprocess(self, data):
        return [row[0] for row in data.tolist()]

    def get_insights(self, data_preprocess, inputs, target):
        tensor = data_preprocess.clone().requires_grad_()
        self.model(tensor)[:, 0].sum().backward()
        return [
            {"gradient": row, "of": inputs.decode(), "target": target}
            for row in tensor.grad.tolist()
        ]
