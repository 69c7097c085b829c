"""Explains the small CNN's answers with integrated gradients, 15 steps."""

import tasks
import torch
from captum.attr import IntegratedGradients

from ts.torch_handler.base_handler import BaseHandler


class ExplainHandler(BaseHandler):
    def initialize(self, context):
        self.context = context
        self.manifest = context.manifest
        self.device = torch.device("cpu")
        self.classifier = tasks.Classifier("cnn")
        self.model = self.classifier.network
        self.gradients = IntegratedGradients(self.model)
        self.initialized = True

    def preprocess(self, data):
        bodies = [bytes(row.get("data") or row.get("body")) for row in data]
        return torch.stack([self.classifier.decode(body) for body in bodies])

    def postprocess(self, data):
        return data.argmax(1).tolist()

    def get_insights(self, tensor_data, _raw, target=0):
        return self.gradients.attribute(tensor_data, target=target, n_steps=15).tolist()
