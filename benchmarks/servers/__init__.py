"""The servers that can be measured, one module each.

A new one: a module with a subclass of `ServerKind` (or `AppServer`) and one line here.
"""

from __future__ import annotations

import importlib

from benchmarks.servers.base import ServerKind

KINDS = {
    "ours": "benchmarks.servers.ours:Ours",
    "torchserve": "benchmarks.servers.torchserve:TorchServe",
    "litserve": "benchmarks.servers.litserve:LitServe",
    "ray": "benchmarks.servers.ray:RayServe",
    "pytriton": "benchmarks.servers.pytriton:PyTriton",
    "mlserver": "benchmarks.servers.mlserver:MLServer",
    "bentoml": "benchmarks.servers.bentoml:BentoML",
    "fastapi": "benchmarks.servers.fastapi:FastAPI",
    "loop": "benchmarks.servers.loop:Loop",
    "floor": "benchmarks.servers.floor:Floor",
}


def kind(name: str) -> type[ServerKind]:
    """Raises KeyError."""
    module, _, attribute = KINDS[name].partition(":")
    found: type[ServerKind] = getattr(importlib.import_module(module), attribute)
    return found
