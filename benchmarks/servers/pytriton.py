"""PyTriton: Triton Inference Server with a Python model, Open Inference Protocol with its binary
extension.
"""

from __future__ import annotations

import json
import sysconfig

from benchmarks import payloads
from benchmarks.load.clients import Request
from benchmarks.servers.base import NETWORKS, AppServer, Ports
from benchmarks.works import Deployment, Work

_HEADER_LENGTH = "Inference-Header-Content-Length"


class PyTriton(AppServer):
    app = "serve_pytriton.py"
    distribution = "nvidia-pytriton"
    requirements = ("nvidia-pytriton", *NETWORKS)

    def why_not(self, work: Work) -> str:
        if work.deployment.task == "stream":
            return "streams over gRPC only"
        return super().why_not(work)

    def environment(self, deployment: Deployment, ports: Ports) -> dict[str, str]:
        environment = super().environment(deployment, ports)
        # Triton's Python backend looks for libpython there.
        environment["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR") or ""
        return environment

    def request(self, work: Work) -> Request:
        """One BYTES element: four bytes of length, then the payload."""
        content = payloads.body(work.payload)
        element = len(content).to_bytes(4, "little") + content
        tensor = {
            "name": "body",
            "shape": [1, 1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(element)},
        }
        output = {"name": "answer", "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": [tensor], "outputs": [output]}, separators=(",", ":")).encode()
        return Request(
            "POST",
            "/v2/models/benchmark/infer",
            {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))},
            head + element,
        )

    def read(self, work: Work, body: bytes) -> bytes:
        _, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
        size = int.from_bytes(body[end : end + 4], "little")
        return body[end + 4 : end + 4 + size]
