"""MLServer: the Open Inference Protocol in JSON, a pool of one worker process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.clients import Request
from benchmarks.servers.base import NETWORKS, AppServer, Launch, Ports, as_text, json_request
from benchmarks.works import Work


class MLServer(AppServer):
    app = "serve_mlserver.py"
    distribution = "mlserver"
    # The workers of MLServer 1.7.1 do not start with a newer uvloop.
    requirements = ("mlserver", "uvloop<0.22", *NETWORKS)

    def why_not(self, work: Work) -> str:
        if work.deployment.task == "stream":
            return "streams only models that it knows"
        return super().why_not(work)

    def command(self, work: Work, folder: Path, ports: Ports) -> Launch:
        deployment = work.deployment
        server = {
            "host": "127.0.0.1",
            "http_port": ports.http,
            "grpc_port": ports.grpc,
            "metrics_port": ports.named("metrics"),
            "parallel_workers": deployment.workers,
            "debug": False,
        }
        model: dict[str, object] = {
            "name": "benchmark",
            "implementation": "serve_mlserver.BenchmarkModel",
        }
        if deployment.batch_size > 1:
            model["max_batch_size"] = deployment.batch_size
            model["max_batch_time"] = deployment.max_batch_delay_ms / 1000
        (folder / "settings.json").write_text(json.dumps(server))
        (folder / "model-settings.json").write_text(json.dumps(model))
        return super().command(work, folder, ports)

    def words(self, folder: Path, ports: Ports) -> Sequence[str]:
        return [str(Path(self.python).with_name("mlserver")), "start", str(folder)]

    def request(self, work: Work) -> Request:
        tensor = {"name": "body", "shape": [1, 1], "datatype": "BYTES", "data": [as_text(work)]}
        return json_request("/v2/models/benchmark/infer", {"inputs": [tensor]})

    def read(self, work: Work, body: bytes) -> bytes:
        return str(json.loads(body)["outputs"][0]["data"][0]).encode()
