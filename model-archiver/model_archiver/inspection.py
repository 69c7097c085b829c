"""`torch-model-archiver inspect` and `verify`.

What an archive may be is the server's rule, and its code the only one that knows it, so these two
run it as a process: this package stays without the server, and packing works where only it is.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence

COMMANDS = ("inspect", "verify")
SERVER_PACKAGE = "ts_frontend"


def run(arguments: Sequence[str]) -> int:
    """The exit status of `torch-model-archiver <arguments>`, the first of which is in COMMANDS."""
    if importlib.util.find_spec(SERVER_PACKAGE) is None:
        print(
            f"ERROR - {arguments[0]} applies the server's rules, and the server is not installed"
            " here (pip install torchserve).",
            file=sys.stderr,
        )
        return 1
    # -P: modules in the folder where the command is typed must not shadow the server's own.
    command = [sys.executable, "-P", "-m", f"{SERVER_PACKAGE}.archive_report", *arguments]
    return subprocess.run(command, check=False).returncode  # noqa: S603  (our own command, no shell)
