"""A worker on a Unix socket in the server's private folder: the default."""

from __future__ import annotations

import asyncio

from ts_frontend.workers.connections.base import ConnectionOwner, SocketConnection, WorkerConnection


class UnixConnection:
    @staticmethod
    async def connect(
        address: str, owner: ConnectionOwner, max_field_bytes: int
    ) -> WorkerConnection:
        """address: the socket's path. Raises OSError if nobody listens there."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(
            lambda: SocketConnection(owner, max_field_bytes), address
        )
        return connection
