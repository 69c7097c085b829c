"""The zygote: a process that has imported what workers import, and forks a worker on demand.

    python ts/worker_zygote.py CONTROL PYTHONPATH MODULES PADDING

CONTROL is the descriptor of a SOCK_SEQPACKET socket whose other end the frontend holds. After the
imports the zygote says {"ready": true} there, or {"unfit": "<why>"} and ends. Then each message
asks for one worker:

    {"id": 1, "command": [..], "environment": {..}, "folder": "..", "descriptors": [..]}

and brings descriptors of its own: the worker's standard output and error, the pipe of its life,
and those that it wants under the numbers `descriptors`. The answers are {"id": 1, "pid": 4711} with
a pidfd, or {"id": 1, "errno": 2} or {"id": 1, "unfit": "<why>"}, and, when the worker has ended,
{"id": 1, "status": -9} (as `subprocess` counts). The end of the socket is the end of the zygote.

A forked worker is to be what the command would have started. So the zygote runs nothing of a
model's and draws no random number, and the child puts in order all that an interpreter sets up at
its start: session, folder, streams, environment, `sys.path`, `sys.argv`, `__main__`, random seeds.
Then it runs the worker's script. Where that is not enough, because the model's folders hold modules
that the zygote has already imported from elsewhere, the child starts the interpreter after all.

A worker does not end with its zygote, but with the frontend: see `_end_with`.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import types
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader, all_suffixes
from typing import Any

HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Imported where torch is: what the handlers of most archives are made of.
HANDLER_MODULES = (
    "ts.torch_handler.image_classifier",
    "ts.torch_handler.image_segmenter",
    "ts.torch_handler.object_detector",
    "ts.torch_handler.text_classifier",
    "ts.metrics.metric_type_enum",
)

MAX_MESSAGE_BYTES = 1 << 20
MAX_DESCRIPTORS = 16
STREAMS = 3  # the descriptors that every request brings: output, error, life
CANNOT_BEGIN = 127
_ERRNO = struct.Struct("=i")


@dataclass(frozen=True)
class Request:
    """One worker to be. descriptors: ours, in the order of the message above."""

    id: int
    command: list[str]
    environment: dict[str, str]
    folder: str
    wanted: list[int]
    descriptors: list[int]


@dataclass(frozen=True)
class Interpreter:
    """What this interpreter had when it started, for children that shall look as fresh.

    path:      `sys.path` as it is without PYTHONPATH and the script's folder.
    searched:  the folders of PYTHONPATH that our own imports went through.
    additions: variables that the interpreter and the imports have set.
    code:      the worker's script.
    """

    path: list[str]
    searched: list[str]
    additions: dict[str, str]
    code: types.CodeType


def fresh_path(python_path: str, rest: Sequence[str]) -> list[str]:
    """`sys.path` of an interpreter that starts with this PYTHONPATH, without the script's folder.

    Source: `site.removeduppaths`: absolute, each folder once, the first place counts.
    """
    entries = python_path.split(os.pathsep) if python_path else []
    return list(dict.fromkeys([*map(os.path.abspath, entries), *rest]))


def find_shadow(folders: Iterable[str], loaded: Collection[str]) -> str | None:
    """A module in `folders` that a fresh interpreter might have taken for one of `loaded`, or None.

    Packages count if they have an `__init__`: a folder without one stands behind all others.
    """
    suffixes = tuple(all_suffixes())
    for folder in folders:
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            continue
        except OSError:
            return folder  # a zip file, or one that only the import system can make sense of
        for entry in entries:
            name = entry.name.partition(".")[0]
            if name not in loaded:
                continue
            if entry.name.endswith(suffixes):
                return entry.path
            has_init = any(
                os.path.exists(os.path.join(entry.path, f"__init__{suffix}")) for suffix in suffixes
            )
            if name == entry.name and has_init:
                return entry.path
    return None


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


class Zygote:
    """Takes requests, forks, and tells how the children ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> request, pid
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def tell(self, answer: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        # A frontend that is gone is met at the next read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._control, [json.dumps(answer).encode()], descriptors)

    def serve(self) -> Request | None:
        """Serve until the frontend is gone (None); returns in every child, with its request."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                    continue
                request = self._receive()
                if request is None or self._fork(request):
                    return request

    def _receive(self) -> Request | None:
        try:
            message, descriptors, _, _ = socket.recv_fds(
                self._control, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None
        if not message:
            return None
        asked = json.loads(message)
        return Request(
            asked["id"],
            asked["command"],
            asked["environment"],
            asked["folder"],
            asked["descriptors"],
            descriptors,
        )

    def _fork(self, request: Request) -> bool:
        """True in the child."""
        try:
            is_child = self._try_to_fork(request)
        except OSError as error:
            self.tell({"id": request.id, "errno": error.errno})
            is_child = False
        if not is_child:
            for descriptor in request.descriptors:
                os.close(descriptor)
        return is_child

    def _try_to_fork(self, request: Request) -> bool:
        if count_threads() != 1:
            # What a thread has locked would stay locked for ever in the child.
            self.tell({"id": request.id, "unfit": "it has more than one thread"})
            return False
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            self._leave(request, writer)
            return True
        os.close(writer)
        child = os.pidfd_open(pid)
        # Only in a session of its own can it be killed with what it starts.
        with open(reader, "rb") as pipe:
            word = pipe.read()
        if word:
            os.waitpid(pid, 0)
            os.close(child)
            raise OSError(_ERRNO.unpack(word)[0], "the worker could not begin")
        self._children[child] = request.id, pid
        self._poll.register(child, select.POLLIN)
        self.tell({"id": request.id, "pid": pid}, [child])
        return False

    def _leave(self, request: Request, writer: int) -> None:
        """In the child: become a process of its own; a failure goes to the parent by `writer`."""
        try:
            os.setsid()
            _end_with(request.descriptors[STREAMS - 1])
            self._control.close()
            for child in self._children:
                os.close(child)
            os.chdir(request.folder)
            writer = _take_descriptors(request, writer)
        except OSError as error:
            os.write(writer, _ERRNO.pack(error.errno or 0))
            os._exit(CANNOT_BEGIN)
        os.close(writer)

    def _reap(self, child: int) -> None:
        request, pid = self._children.pop(child)
        self._poll.unregister(child)
        _, status = os.waitpid(pid, 0)
        os.close(child)
        self.tell({"id": request, "status": os.waitstatus_to_exitcode(status)})


def _end_with(life: int) -> None:
    """Have the kernel end this process when the other end of the pipe `life` is closed.

    The frontend holds that end, so this happens when it ends, however it does. The signal that the
    kernel can send for the end of a parent would come with the end of the zygote.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    watch = select.poll()
    watch.register(life, 0)
    if watch.poll(0):  # it is gone already
        os._exit(1)


def _take_descriptors(request: Request, writer: int) -> int:
    """Bring the request's descriptors to the numbers they belong to; the new number of `writer`.

    The pipe of its life goes to a number that nobody has asked for, and `execve` keeps it.
    """
    free = max([STREAMS - 1, writer, *request.descriptors, *request.wanted]) + 1
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, free) for number in request.descriptors]
    new_writer = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, free)
    for number in (writer, *request.descriptors):
        os.close(number)
    output, error, life, *others = moved
    os.dup2(output, 1)
    os.dup2(error, 2)
    os.set_inheritable(life, True)
    for number, wanted in zip(others, request.wanted):  # noqa: B905 - as long
        os.dup2(number, wanted)
    for number in (output, error, *others):
        os.close(number)
    return new_writer


def become_worker(request: Request, interpreter: Interpreter) -> None:
    """Run the worker of `request` in this process; returns or raises as its script does."""
    environment = request.environment
    command = request.command
    python_path = environment.get("PYTHONPATH", "")
    own = [entry for entry in fresh_path(python_path, ()) if entry not in interpreter.searched]
    loaded = {name.partition(".")[0] for name in sys.modules} - {"ts", "__main__"}
    shadow = find_shadow(own, loaded | {"sitecustomize", "usercustomize"})
    if shadow is not None or command[1] != interpreter.code.co_filename:
        if shadow is not None:
            print(f"Starting a fresh interpreter, for the sake of {shadow}", flush=True)
        os.execvpe(command[0], command, environment)  # noqa: S606 - what was asked for
    os.environ.clear()
    os.environ.update({**interpreter.additions, **environment})
    _show_command(command)
    _forget_the_past()
    sys.argv[:] = command[1:]
    sys.orig_argv[:] = command
    sys.path[:] = [os.path.dirname(command[1]), *fresh_path(python_path, interpreter.path)]
    importlib.invalidate_caches()
    main = types.ModuleType("__main__")
    vars(main).update(
        __annotations__={},
        __builtins__=builtins,
        __cached__=None,
        __file__=command[1],
        __loader__=SourceFileLoader("__main__", command[1]),
    )
    sys.modules["__main__"] = main
    exec(interpreter.code, vars(main))  # noqa: S102 - our own script


def _forget_the_past() -> None:
    """What modules have noted at their import, and what must differ between processes.

    `random` and `threading` see to themselves.
    """
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()
    if (processes := sys.modules.get("multiprocessing.process")) is not None:
        processes.ORIGINAL_DIR = os.getcwd()
        processes.current_process().authkey = os.urandom(32)
    tempfile.tempdir = None


def _show_command(command: Sequence[str]) -> None:
    """Have `ps` show `command` as this process's, as far as there is room for it.

    The kernel shows the memory in which the process has found its arguments.
    """
    import ctypes

    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start, arg_end of proc(5)
    room = end - begin
    if begin and room > 1:
        text = b"\0".join(map(os.fsencode, command))[: room - 1]
        ctypes.memmove(begin, text.ljust(room, b"\0"), room)


def import_modules(names: Iterable[str]) -> None:
    """Import what can be imported; the rest a worker that needs it will complain about."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"Not imported: {name} ({error!r})", file=sys.stderr, flush=True)


def why_unfit() -> str | None:
    """Why no child of this process could be trusted, or None."""
    # A first fork has libraries that know of forks end their threads: OpenBLAS starts some when it
    # is loaded, and starts them again when it needs them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    if (threads := count_threads()) != 1:
        return f"what it has imported runs {threads - 1} threads"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "what it has imported has begun to use a GPU"
    return None


def prepare(python_path: str, modules: Sequence[str]) -> Interpreter:
    """Import; `sys.path` is what the interpreter has started with, without the script's folder."""
    with open("/proc/self/environ", "rb") as file:
        given = {os.fsdecode(variable.partition(b"=")[0]) for variable in file.read().split(b"\0")}
    path = list(sys.path)
    searched = [*fresh_path(python_path, ()), HOME]
    sys.path[:] = [HOME, *fresh_path(python_path, path)]  # no other `ts` may win
    from ts.model_service_worker import die_with_parent

    die_with_parent()
    sys.path[:] = fresh_path(python_path, path)
    if HOME not in sys.path:
        sys.path.append(HOME)
    import_modules(modules)
    if "torch" in sys.modules:
        import_modules(HANDLER_MODULES)
    additions = {name: value for name, value in os.environ.items() if name not in given}
    script = os.path.join(os.path.dirname(sys.argv[0]), "model_service_worker.py")
    with open(script, "rb") as file:
        code = compile(file.read(), script, "exec", dont_inherit=True)
    return Interpreter(path, searched, additions, code)


def main() -> None:
    number, python_path, modules = sys.argv[1:4]
    zygote = Zygote(socket.socket(fileno=int(number)))
    os.set_inheritable(int(number), False)
    _show_command(sys.orig_argv[:-1])
    interpreter = prepare(python_path, modules.split())
    if (reason := why_unfit()) is not None:
        zygote.tell({"unfit": reason})
        return
    # The collector would write to every object, and so make every page the child's own.
    gc.collect()
    gc.freeze()
    zygote.tell({"ready": True})
    request = zygote.serve()
    if request is not None:
        become_worker(request, interpreter)


if __name__ == "__main__":
    script_dir = os.path.join(HOME, "ts")
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != script_dir]
    main()
