"""How the server tells the `torchserve` command how far its start has come.

The command passes the writing end of a pipe (`--ready-fd`). Lines of it: `PROGRESS text` any number
of times, then once `READY text` or `FAILED text`; an end of file without either means that the
server died. Line breaks inside a text are written as `\\n`.
"""

from __future__ import annotations

import contextlib
import os


class StartReport:
    """fd: None when nobody waits; all methods then do nothing."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            # Workers must not hold the pipe open after the server has died.
            os.set_inheritable(fd, False)

    def progress(self, text: str) -> None:
        """For instance "loading 3 of 5 models"; the command shows the last one now and then."""
        self._write("PROGRESS", text)

    def ready(self, text: str) -> None:
        self._write("READY", text)
        self.close()

    def failed(self, text: str) -> None:
        self._write("FAILED", text)
        self.close()

    def close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _write(self, word: str, text: str) -> None:
        if self._fd is None:
            return
        escaped = text.replace("\\", "\\\\").replace("\r", "").replace("\n", "\\n")
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(self._fd, f"{word} {escaped}\n".encode())
