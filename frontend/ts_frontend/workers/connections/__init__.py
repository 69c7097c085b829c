"""How the frontend reaches a worker. Each kind is one module; `CONNECTIONS` names them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ts_frontend.workers.session import Connect

CONNECTIONS = {
    "unix": "ts_frontend.workers.connections.unix:UnixConnection",
    "tcp": "ts_frontend.workers.connections.tcp:TcpConnection",
}


def load_connection(kind: str) -> Connect:
    """The function that connects to a worker of this kind."""
    module, _, name = CONNECTIONS[kind].partition(":")
    connect: Connect = getattr(importlib.import_module(module), name).connect
    return connect
