"""Answers what it was sent, with its version in a header, or behaves as its configuration says."""

import os
import time


class Handler:
    def initialize(self, context):
        self.behaves = context.model_yaml_config.get("behaves", "")
        self.version = context.manifest["model"]["modelVersion"]
        if self.behaves == "loads slowly":
            time.sleep(3)

    def handle(self, data, context):
        if self.behaves == "crashes":
            os._exit(5)
        if self.behaves == "fails":
            raise ValueError("this version always fails")
        if self.behaves == "hangs":
            time.sleep(1000)
        for index in range(len(data)):
            context.set_response_header(index, "x-version", self.version)
        if self.behaves == "lies":
            return ["something else"] * len(data)
        return [bytes(row.get("data") or row.get("body") or b"").decode() for row in data]
