"""Answers what its process looks like, as JSON; the body may ask for something else to happen."""

import json
import multiprocessing.process
import os
import random
import resource
import signal
import sys
import tempfile


def look():
    import numpy as np
    import torch

    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    main = sys.modules["__main__"]
    numbers = range(1, signal.NSIG)
    return {
        "environ": dict(os.environ),
        "path": sys.path,
        "cwd": os.getcwd(),
        "first_cwd": multiprocessing.process.ORIGINAL_DIR,
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "command": open("/proc/self/cmdline").read().rstrip("\0").split("\0"),
        "flags": str(sys.flags),
        "main": {name: str(vars(main)[name]) for name in ("__name__", "__file__", "__spec__")},
        "main_names": sorted(vars(main)),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in names},
        "umask": os.umask(0o022),
        "temp": tempfile.gettempdir(),
        "signals": {number: str(signal.getsignal(number)) for number in numbers},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "affinity": sorted(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "is_session_leader": os.getsid(0) == os.getpid(),
        "stdin": os.readlink("/proc/self/fd/0"),
        "encodings": [sys.stdout.encoding, sys.stderr.encoding, sys.getfilesystemencoding()],
        "line_buffering": [sys.stdout.line_buffering, sys.stderr.line_buffering],
        "differs": {
            "pid": os.getpid(),
            "random": random.random(),
            "numpy": float(np.random.rand()),
            "torch": float(torch.rand(1)),
            "key": multiprocessing.process.current_process().authkey.hex(),
            "descriptors": sorted(os.listdir("/proc/self/fd")),
            "is_torch_old": "torch" in OLD_MODULES,
        },
    }


OLD_MODULES = set(sys.modules)


def answer(text):
    word, _, rest = text.partition(" ")
    if word == "exit":
        sys.exit(int(rest))
    if word == "kill":
        os.kill(os.getpid(), int(rest))
    if word == "say":
        print(f"out {rest}")
        print(f"err {rest}", file=sys.stderr)
    if word == "sum":  # of more threads than one
        import torch

        return str(int(torch.ones(400, 400).mm(torch.ones(400, 400)).sum()))
    return json.dumps(look()) if word == "look" else text


def handle(data, context):
    if data is None:
        return None
    return [answer((row.get("body") or b"").decode()) for row in data]
