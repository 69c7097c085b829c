"""No server: the same decoding and model in a loop in one process, the measure of W4 and W5."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import payloads
from benchmarks.load.clients import Request
from benchmarks.load.outcome import LoadFailed, Outcome
from benchmarks.servers.base import (
    APPS,
    BINARY,
    AppServer,
    Ports,
    RunningServer,
    ask,
    in_environment,
)
from benchmarks.works import Measure, Work


class Loop(AppServer):
    app = "loop.py"
    distribution = "torch"

    def why_missing(self) -> str:
        found = in_environment(self.python, "import torch, numpy, PIL; print(1)")
        return "" if found else f"torch, numpy and Pillow are not installed in {self.python}"

    def version(self) -> str:
        return "the model in a loop (benchmarks/apps/loop.py)"

    def why_not(self, work: Work) -> str:
        if work.deployment.task not in ("cnn", "resnet") or work.measure is not Measure.LOAD:
            return "only networks"
        if work.deployment.workers > 1:
            return "one process"
        return super().why_not(work)

    def words(self, folder: Path, ports: Ports) -> Sequence[str]:
        return [self.python or sys.executable, str(APPS / self.app)]

    def load(self, server: RunningServer, work: Work, seconds: float) -> Outcome:
        request = Request("POST", f"/loop/{seconds:g}", BINARY, payloads.body(work.payload))
        try:
            status, body = ask(server.ports.http, request, timeout_s=seconds + 30)
        except OSError as error:
            raise LoadFailed(f"the loop did not answer: {error}") from error
        if status != 200:
            raise LoadFailed(f"the loop answered with status {status}")
        return Outcome(client="none", **json.loads(body))
