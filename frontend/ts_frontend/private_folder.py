"""The folder that belongs to one server process, and what becomes of it when the process is killed.

Worker sockets live in it. A lock on its file `.owner` is held for as long as the process lives; the
kernel lets go of it whatever way the process ends. So the next server can tell what was left behind
from what is in use, also where a number has got a new process or where containers share the folder.
Besides its own contents a folder answers for the unpacked archives that are named in its file
`claims`.

Entry points: `PrivateFolder.create`, `remove_abandoned`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable

logger = logging.getLogger(__name__)

PREFIX = "ts-"
_OWNER = ".owner"
_CLAIMS = "claims"
# What the model store unpacks into: <temp>/models/<hex>.
_CLAIMABLE = re.compile(r"/.*/models/[0-9a-f]{32}")


class PrivateFolder:
    """A fresh folder, open to this user alone. `remove` it at the end."""

    def __init__(self, path: str) -> None:
        """Takes the lock of an empty folder."""
        self.path = path
        # It gets its name when it is locked: a file of that name that is not locked is abandoned.
        unnamed = os.path.join(path, f"{_OWNER}.new")
        self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._lock, b"%d\n" % os.getpid())  # for people who look
            os.rename(unnamed, os.path.join(path, _OWNER))
        except BaseException:
            os.close(self._lock)
            raise

    @classmethod
    def create(cls, parents: Iterable[str], max_path_bytes: int) -> PrivateFolder:
        """In the first of `parents` that is writable and where its path is short enough.

        Raises OSError if there is none.
        """
        tried = []
        for parent in parents:
            tried.append(parent)
            with contextlib.suppress(OSError):
                folder = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
                try:
                    if len(os.fsencode(folder)) <= max_path_bytes:
                        return cls(folder)
                    os.rmdir(folder)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
        raise OSError(
            f"No folder for worker sockets in {' or '.join(tried)}: "
            "its path is too long or not writable."
        )

    def claim(self, path: str) -> None:
        """Note that `path` belongs to this process, before it is made. Raises OSError."""
        with open(os.path.join(self.path, _CLAIMS), "a", encoding="utf-8") as file:
            file.write(f"{path}\n")

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned(parent: str) -> list[str]:
    """Remove what servers have left in `parent` that ended without removing it themselves.

    Touches only folders of this user whose lock nobody holds; returns what was removed.
    """
    removed: list[str] = []
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if (
                    entry.name.startswith(PREFIX)
                    and entry.is_dir(follow_symlinks=False)
                    and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
                ):
                    removed += _remove_if_abandoned(entry.path)
    return removed


def _remove_if_abandoned(folder: str) -> list[str]:
    """Raises OSError if it is none of ours, or in use."""
    lock = os.open(os.path.join(folder, _OWNER), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        removed = []
        for claimed in _read_claims(folder):
            if os.path.isdir(claimed) and not os.path.islink(claimed):
                shutil.rmtree(claimed)
                removed.append(claimed)
        shutil.rmtree(folder)
        return [*removed, folder]
    finally:
        os.close(lock)


def _read_claims(folder: str) -> list[str]:
    try:
        with open(os.path.join(folder, _CLAIMS), encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    return [line for line in lines if _CLAIMABLE.fullmatch(line) and ".." not in line]
