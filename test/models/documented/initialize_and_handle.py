"""A class with `initialize` and `handle` alone: the documentation's handler for advanced uses."""

import os

import torch


class ModelHandler:
    def __init__(self):
        self._context = None
        self.initialized = False
        self.model = None
        self.device = None

    def initialize(self, context):
        self.manifest = context.manifest
        properties = context.system_properties
        gpu_id = properties.get("gpu_id")
        use_gpu = torch.cuda.is_available() and gpu_id is not None
        self.device = torch.device(f"cuda:{gpu_id}" if use_gpu else "cpu")
        serialized_file = self.manifest["model"]["serializedFile"]
        path = os.path.join(properties.get("model_dir"), serialized_file)
        if not os.path.isfile(path):
            raise RuntimeError("Missing the model.pt file")
        self.weights = torch.load(path, map_location=self.device, weights_only=True)
        self.initialized = True

    def handle(self, data, context):
        answers = []
        for index, row in enumerate(data):
            text = row.get("body")
            if text is None:
                text = row.get("data")
            if isinstance(text, (bytes, bytearray)):
                text = text.decode("utf-8")
            if text == "teapot":
                context.set_response_status(418, "I am a teapot", index)
            context.set_response_content_type(index, "text/plain")
            context.set_response_header(index, "x-length", str(len(text)))
            header = context.get_request_header(index, "X-Question")
            factor = self.weights["factor"].item()
            answers.append(f"{text} {header} {factor} {self.manifest['model']['modelName']}")
        return answers
