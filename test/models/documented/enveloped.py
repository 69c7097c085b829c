"""Written for an envelope: rows are what the envelope has taken out of the requests."""

import torch

from ts.torch_handler.base_handler import BaseHandler


class EnvelopedHandler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor(data, dtype=torch.float32, device=self.device)
