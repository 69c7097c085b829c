"""The server of this repository."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.servers.base import distribution_version, in_environment
from benchmarks.servers.torchserve import TorchServeCommand
from benchmarks.works import Measure, Work

ROOT = Path(__file__).resolve().parents[2]


class Ours(TorchServeCommand):
    """Without an environment of its own: this working tree, run by the Python of this tool. With
    one: what is installed there, so that two states of the server can be compared.
    """

    def why_missing(self) -> str:
        if not os.access(self.python, os.X_OK):
            return f"there is no {self.python}"
        if self.has_own_environment:
            found = in_environment(self.python, "import ts_frontend, ts; print(1)")
            return "" if found else f"the server is not installed in {self.python}"
        found = in_environment(self.python, "import httptools, msgspec, psutil, yaml; print(1)")
        return "" if found else f"{self.python} lacks what the server needs; see scripts/install"

    def why_not(self, work: Work) -> str:
        if work.measure is Measure.GRPC and not self._has_grpc():
            return "its gRPC is not there"
        return super().why_not(work)

    def _has_grpc(self) -> bool:
        if self.has_own_environment:
            return bool(in_environment(self.python, "import grpc, ts_frontend.grpc; print(1)"))
        has_grpcio = bool(in_environment(self.python, "import grpc; print(1)"))
        return has_grpcio and (ROOT / "frontend" / "ts_frontend" / "grpc").is_dir()

    def version(self) -> str:
        if self.has_own_environment:
            return f"ours {distribution_version(self.python, 'torchserve')}"
        return f"ours {(ROOT / 'ts' / 'version.txt').read_text().strip()} (this working tree)"

    def words(self) -> list[str]:
        # -P: the folder that this tool is started in must not shadow the server's modules.
        return [self.python, "-P", "-m", "ts.model_server"]

    def environment(self) -> dict[str, str]:
        if self.has_own_environment:
            return {"PYTHONPATH": ""}
        paths = [ROOT / "frontend", ROOT / "model-archiver", ROOT]
        return {"PYTHONPATH": os.pathsep.join(map(str, paths))}
