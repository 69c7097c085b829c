"""A worker on a loopback TCP port: where Unix sockets are not to be had (`use_native_io=false`)."""

from __future__ import annotations

import asyncio
import socket

from ts_frontend.workers.connections.base import ConnectionOwner, SocketConnection, WorkerConnection


class TcpConnection:
    @staticmethod
    async def connect(
        address: str, owner: ConnectionOwner, max_field_bytes: int
    ) -> WorkerConnection:
        """address: `host:port`. Raises OSError if nobody listens there."""
        loop = asyncio.get_running_loop()
        host, _, port = address.rpartition(":")
        transport, connection = await loop.create_connection(
            lambda: SocketConnection(owner, max_field_bytes), host, int(port)
        )
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
