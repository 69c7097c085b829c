"""BentoML: a service of one worker, JSON bodies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.clients import Request
from benchmarks.servers.base import APPS, NETWORKS, AppServer, Ports, as_text, json_request
from benchmarks.works import Work


class BentoML(AppServer):
    app = "serve_bentoml.py"
    distribution = "bentoml"
    requirements = ("bentoml", *NETWORKS)
    variables = {"BENTOML_DO_NOT_TRACK": "True"}  # noqa: RUF012  (ClassVar of the base)

    def words(self, folder: Path, ports: Ports) -> Sequence[str]:
        return [
            str(Path(self.python).with_name("bentoml")),
            *("serve", "serve_bentoml:BenchmarkService"),
            *("--host", "127.0.0.1", "--port", str(ports.http)),
            *("--working-dir", str(APPS)),
        ]

    def request(self, work: Work) -> Request:
        text = as_text(work)
        # A batchable API takes and gives lists; one caller's list holds one element.
        return json_request(
            "/predict", {"data": [text] if work.deployment.batch_size > 1 else text}
        )

    def read(self, work: Work, body: bytes) -> bytes:
        if work.deployment.task == "stream":
            return body
        if work.deployment.batch_size > 1:
            return str(json.loads(body)[0]).encode()
        # A plain string is answered as text.
        text = body.decode()
        return (json.loads(text) if text.startswith('"') else text).encode()
