"""The folder that belongs to one server process, and what becomes of it when the process is killed.

Worker sockets live in it. A lock on its file `.owner` is held for as long as the process lives; the
kernel lets go of it whatever way the process ends. So the next server can tell what was left behind
from what is in use, also where a number has got a new process or where containers share the folder.
A folder answers for the unpacked archives, too: their names begin with the folder's token.

Entry points: `PrivateFolder.create`, `remove_abandoned`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable

logger = logging.getLogger(__name__)

PREFIX = "ts-"
_OWNER = ".owner"
_TOKEN_BYTES = 4
_NAME = re.compile(re.escape(PREFIX) + r"([0-9a-f]{8})")
_UNPACKED_NAME = re.compile(r"[0-9a-f]{32}")


class PrivateFolder:
    """A fresh folder, open to this user alone. `remove` it at the end."""

    def __init__(self, path: str) -> None:
        """Takes the lock of an empty folder."""
        self.path = path
        self.token = path[-2 * _TOKEN_BYTES :]  # hexadecimal
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
                # A name that is taken is no more likely than any other failure.
                folder = os.path.join(parent, PREFIX + secrets.token_hex(_TOKEN_BYTES))
                os.mkdir(folder, 0o700)
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

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned(parent: str, unpacked: str) -> list[str]:
    """Remove what servers have left in `parent` that ended without removing it themselves.

    unpacked: where archives are unpacked; those of such servers go as well.
    Touches only folders of this user whose lock nobody holds; returns what was removed.
    """
    removed: list[str] = []
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if (
                    _NAME.fullmatch(entry.name)
                    and entry.is_dir(follow_symlinks=False)
                    and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
                ):
                    removed += _remove_if_abandoned(entry.path, unpacked)
    return removed


def _remove_if_abandoned(folder: str, unpacked: str) -> list[str]:
    """Raises OSError if it is none of ours, or in use."""
    lock = os.open(os.path.join(folder, _OWNER), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        removed = []
        for path in _unpacked_by(folder[-2 * _TOKEN_BYTES :], unpacked):
            shutil.rmtree(path)
            removed.append(path)
        shutil.rmtree(folder)
        return [*removed, folder]
    finally:
        os.close(lock)


def _unpacked_by(token: str, unpacked: str) -> list[str]:
    if not os.path.isdir(unpacked):
        return []
    with os.scandir(unpacked) as entries:
        return [
            entry.path
            for entry in entries
            if entry.name.startswith(token)
            and _UNPACKED_NAME.fullmatch(entry.name)
            and entry.is_dir(follow_symlinks=False)
        ]
