"""A worker takes from itself what its model may not have, before any of the model's code runs.

What is taken cannot be had back: hard limits are lowered with the soft ones, a namespace is not
left again, and children inherit all of it. It keeps a faulty model from harming others; against a
hostile one it is one fence of several (docs/containment.md).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ts.protocol.restrictions import Restrictions

if TYPE_CHECKING:
    import ctypes

with contextlib.suppress(ImportError):  # there is none on Windows
    import resource

# linux/sched.h, linux/prctl.h, linux/sockios.h, linux/if.h
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS = 38
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

CPU_GRACE_S = 5  # from SIGXCPU, which a handler may catch, to SIGKILL


class NotContainedError(RuntimeError):
    """The system refuses what the model's configuration asks for, so the model is not loaded."""


def contain(wanted: Restrictions, *, is_tcp: bool = False) -> None:
    """Restrict this process for the rest of its life. To be called while it has one thread.

    is_tcp: the frontend will connect over the network. Raises NotContainedError.
    """
    if wanted == Restrictions():
        return
    if not sys.platform.startswith("linux"):
        raise NotContainedError(f"Workers cannot be restricted on {sys.platform}.")
    if wanted.is_offline:
        if is_tcp:
            raise NotContainedError("`network: none` needs unix sockets (use_native_io=true).")
        _leave_network()
    if wanted.is_unprivileged:
        _call("PR_SET_NO_NEW_PRIVS", lambda libc: libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    for name, amount in (
        ("RLIMIT_NOFILE", wanted.open_files),
        ("RLIMIT_FSIZE", wanted.file_bytes),
        ("RLIMIT_AS", wanted.address_space_bytes),
    ):
        _limit(name, amount, amount)
    _limit("RLIMIT_CPU", wanted.cpu_s, wanted.cpu_s + CPU_GRACE_S)


def _limit(name: str, soft: int, hard: int) -> None:
    """Lower a limit; what is lower already stays."""
    if not soft:
        return
    number = getattr(resource, name)
    highest = resource.getrlimit(number)[1]
    if highest != resource.RLIM_INFINITY:
        soft, hard = min(soft, highest), min(hard, highest)
    try:
        resource.setrlimit(number, (soft, hard))
    except (OSError, ValueError) as error:
        raise NotContainedError(f"{name} cannot be set to {soft}: {error}") from error


def _leave_network() -> None:
    """A network with nothing in it but a loopback interface. Unix sockets of files still work."""
    if os.geteuid() == 0:
        _call("unshare(CLONE_NEWNET)", lambda libc: libc.unshare(CLONE_NEWNET))
    else:
        # Whoever makes a namespace of users may make others in it.
        user, group = os.geteuid(), os.getegid()
        _call(
            "unshare(CLONE_NEWUSER | CLONE_NEWNET)",
            lambda libc: libc.unshare(CLONE_NEWUSER | CLONE_NEWNET),
        )
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    _raise_loopback()


def _raise_loopback() -> None:
    """Libraries that talk to themselves over 127.0.0.1 go on working."""
    import fcntl

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:
        fcntl.ioctl(any_, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP).ljust(40, b"\0"))


def _call(what: str, function: Callable[[ctypes.CDLL], int]) -> None:
    import ctypes  # only here: every worker imports this module, few need libc

    libc = ctypes.CDLL(None, use_errno=True)
    if function(libc) != 0:
        reason = os.strerror(ctypes.get_errno())
        hint = ""
        if "unshare" in what:
            hint = (
                " (`network: none`; containers and some systems forbid it to unprivileged users:"
                " give the server CAP_SYS_ADMIN, allow user namespaces, or take the key out)"
            )
        raise NotContainedError(f"{what}: {reason}{hint}")


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise NotContainedError(f"{path} cannot be written: {error.strerror}") from error
