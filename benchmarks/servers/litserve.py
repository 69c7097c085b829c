"""LitServe: one API server, workers in processes of their own, batches, JSON bodies."""

from __future__ import annotations

import json

from benchmarks.load.clients import Request
from benchmarks.servers.base import NETWORKS, AppServer, as_text, json_request
from benchmarks.works import Work


class LitServe(AppServer):
    app = "serve_litserve.py"
    distribution = "litserve"
    requirements = ("litserve", *NETWORKS)

    def request(self, work: Work) -> Request:
        return json_request("/predict", {"data": as_text(work)})

    def read(self, work: Work, body: bytes) -> bytes:
        if work.deployment.task == "stream":
            return body
        return str(json.loads(body)["data"]).encode()
