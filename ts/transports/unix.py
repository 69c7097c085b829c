"""Listening on a socket file."""

from __future__ import annotations

import contextlib
import os
import socket


def rank_path(sock_name: str, rank: int) -> str:
    """The socket of this rank: the number at the end of `sock_name`, counted up by the rank."""
    prefix, _, number = sock_name.rpartition(".")
    try:
        return f"{prefix}.{int(number) + rank}"
    except ValueError:
        if rank:
            raise ValueError(f"{sock_name} does not end in a number, as ranks need it") from None
        return sock_name


def listen(path: str) -> tuple[socket.socket, str]:
    """A listening socket, and how the log names its address.

    Raises RuntimeError if a file that is in the way cannot be removed.
    """
    try:
        os.remove(path)
    except OSError as error:
        if os.path.lexists(path):
            raise RuntimeError(f"socket already in use: {path}.") from error
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(path)
    listener.listen(1)
    return listener, f"port: {path}"


def clean_up(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)
