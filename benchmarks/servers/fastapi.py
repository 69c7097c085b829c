"""FastAPI on uvicorn: the model in the frontend's process, no batching, no isolation."""

from __future__ import annotations

from benchmarks.servers.base import NETWORKS, AppServer
from benchmarks.works import Work


class FastAPI(AppServer):
    app = "serve_fastapi.py"
    distribution = "fastapi"
    requirements = ("fastapi", "uvicorn[standard]", *NETWORKS)

    def why_not(self, work: Work) -> str:
        if work.deployment.workers > 1:
            return "one process"
        return super().why_not(work)
