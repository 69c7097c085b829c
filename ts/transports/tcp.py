"""Listening on a TCP port."""

from __future__ import annotations

import socket


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A listening socket, and how the log names its address."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it; a reply goes out at once and is never followed by a small rest.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host, port))
    listener.listen(1)
    return listener, f"addr:port: {host}:{listener.getsockname()[1]}"
