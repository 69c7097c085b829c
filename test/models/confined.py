"""Does what the body says, or what the file `at_load` in the archive says while it loads."""

import ctypes
import json
import os
import resource
import socket
import sys
import tempfile
import time

kept = []


class Handler:
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        path = os.path.join(folder, "at_load")
        if os.path.exists(path):
            with open(path) as file:
                act(file.read().strip())

    def handle(self, data, context):
        return [act(bytes(row.get("data") or row.get("body") or b"").decode()) for row in data]


def act(text):
    word, _, argument = text.partition(" ")
    return json.dumps(ACTS[word](argument))


def segfault(_):
    ctypes.string_at(0)


def leave(status):
    sys.exit(int(status))


def allocate(megabytes):
    kept.append(bytearray(int(megabytes) << 20))
    return len(kept)


def load_weights(name):
    with open(os.path.join(os.path.dirname(__file__), name)) as file:
        return file.read()


def burn(_):
    while True:
        pass


def write(megabytes):
    path = os.path.join(tempfile.gettempdir(), "written")
    with open(path, "wb") as file:
        file.write(bytes(int(megabytes) << 20))
    return os.path.getsize(path)


def connect(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        return type(error).__name__
    return "connected"


def loopback(_):
    """Whether two sockets of this process can talk over 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
    return "connected"


def facts(_):
    with open("/proc/self/status") as file:
        status = dict(line.split(":\t", 1) for line in file.read().splitlines())
    return {
        "temp": tempfile.gettempdir(),
        "pid": os.getpid(),
        "no_new_privileges": status["NoNewPrivs"],
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "user": os.geteuid(),
    }


def meet(count):
    """The facts of this process, once so many are here at the same time."""
    folder = os.path.dirname(__file__)
    open(os.path.join(folder, f"met-{os.getpid()}"), "w").close()
    give_up_s = time.monotonic() + 20
    while sum(name.startswith("met-") for name in os.listdir(folder)) < int(count):
        if time.monotonic() > give_up_s:
            raise TimeoutError("nobody else came")
        time.sleep(0.01)
    return facts("")


def use(module):
    return __import__(module).VALUE


def variable(name):
    return os.environ.get(name)


ACTS = {
    "segfault": segfault,
    "exit": leave,
    "allocate": allocate,
    "load": load_weights,
    "burn": burn,
    "write": write,
    "connect": connect,
    "loopback": loopback,
    "facts": facts,
    "meet": meet,
    "use": use,
    "variable": variable,
    "echo": str,
}
