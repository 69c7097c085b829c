"""Ends its process in the way that the body names; answers any other body with itself."""

import os
import signal
import sys


def handle(data, context):
    if data is None:
        return None
    for row in data:
        how = bytes(row.get("data") or row.get("body") or b"").decode()
        if how == "exit":
            sys.exit(4)
        elif how == "_exit":
            os._exit(5)
        elif how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "abort":
            os.abort()
    return [row.get("data") or row.get("body") or b"" for row in data]
