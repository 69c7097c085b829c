"""`Zygote`: workers by a fork of a process that has imported what they import.

`Zygote.start` is `WorkerProcess.start` in a few milliseconds, and gives the same: a process whose
lines, exit code and end are seen as those of any other. The zygote's process (ts/worker_zygote.py)
is started when it is first needed. While there is none, or none that is of use, workers are started
the ordinary way, with a warning that says why.

A worker does not depend on its zygote. Its output is read here; its end is told by the zygote, or,
where that has gone first, seen at its pidfd (its exit code may be unknown then). And it holds the
reading end of a pipe, its life, on which the kernel kills it when the writing end is closed: the
frontend's end does that, and so does giving up a start half way.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import itertools
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ts.protocol.controls import CONTROLS_VARIABLE
from ts.protocol.log_lines import LEVELS_VARIABLE, split_level
from ts.protocol.restrictions import RESTRICTIONS_VARIABLE
from ts.protocol.shared_memory import CHANNEL_VARIABLE
from ts_frontend.workers.process import LineSink, WorkerProcess

logger = logging.getLogger(__name__)

PARENT_VARIABLE = "TS_WORKER_DIE_WITH_PARENT"
# Read by a worker after its start, not by a library while it is loaded: these may differ between
# the zygote and a worker. With any other difference a fork would not be what a fresh start is.
LATE_VARIABLES = frozenset(
    {
        "PYTHONPATH",
        "TMPDIR",
        "TEMP",
        "TMP",
        PARENT_VARIABLE,
        LEVELS_VARIABLE,
        CONTROLS_VARIABLE,
        CHANNEL_VARIABLE,
        RESTRICTIONS_VARIABLE,
    }
)

READY_S = 120.0  # for the imports; as long as a worker has to listen
ANSWER_S = 10.0  # for a fork
STATUS_S = 1.0  # from the end of a worker to the word how it ended
UNKNOWN_STATUS = 255  # what asyncio says of a child that somebody else has waited for
MAX_MESSAGE_BYTES = 64 * 1024
# linux/pidfd.h, the first version of struct pidfd_info: its mask, ids, and the status of `wait`.
PIDFD_GET_INFO = 0xC040FF0B
PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO = struct.Struct("=Q52xi")
SHOWN_COMMAND_CHARS = 2048  # room for a worker's command line in what `ps` shows


class ZygoteFailed(Exception):
    """It cannot fork this worker now; the text says why. An ordinary start may succeed."""


class Zygote:
    """modules: what it imports besides what every worker needs.

    environment: what workers inherit; one whose environment differs in more than `LATE_VARIABLES`
    is started the ordinary way.
    """

    def __init__(
        self,
        python: str,
        home: str,
        environment: Mapping[str, str],
        modules: Sequence[str] = (),
    ) -> None:
        self._command = [python, os.path.join(home, "ts", "worker_zygote.py")]
        self._environment = dict(environment)
        python_path = environment.get("PYTHONPATH", "")
        self._arguments = [python_path, " ".join(modules), " " * SHOWN_COMMAND_CHARS]
        self._link: ZygoteLink | None = None
        self._starting = asyncio.Lock()
        self._has_failed = False

    @classmethod
    def create(
        cls, python: str, home: str, environment: Mapping[str, str], modules: Sequence[str] = ()
    ) -> Zygote | None:
        """None where the system has no handles for processes (Linux before 5.3, others)."""
        if not sys.platform.startswith("linux") or not hasattr(os, "pidfd_open"):
            return None
        return cls(python, home, environment, modules)

    @property
    def pid(self) -> int | None:
        return None if self._link is None else self._link.pid

    async def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        working_dir: str,
        sink: LineSink,
        descriptors: Sequence[int] = (),
    ) -> WorkerProcess:
        """As `WorkerProcess.start`. Raises OSError."""
        try:
            if difference := self._difference(environment):
                raise ZygoteFailed(f"its environment has another {', '.join(difference)}")
            link = await self._ready_link()
            return await link.fork(command, environment, working_dir, sink, descriptors)
        except ZygoteFailed as error:
            logger.warning("A worker is started without its zygote: %s", error)
        return await WorkerProcess.start(command, environment, working_dir, sink, descriptors)

    async def aclose(self) -> None:
        self._has_failed = True  # nothing starts it any more
        async with self._starting:
            link, self._link = self._link, None
            if link is not None:
                await link.aclose()

    def _difference(self, environment: Mapping[str, str]) -> list[str]:
        ours = self._environment
        names = (ours.keys() | environment.keys()) - LATE_VARIABLES
        return sorted(name for name in names if ours.get(name) != environment.get(name))

    async def _ready_link(self) -> ZygoteLink:
        """Raises ZygoteFailed. A start that failed would fail again; one that was lost may not."""
        async with self._starting:
            if self._link is not None and self._link.is_open:
                return self._link
            if self._has_failed:
                raise ZygoteFailed("it could not be started")
            if self._link is not None:
                link, self._link = self._link, None
                await link.aclose()
            link = ZygoteLink()
            try:
                await link.start(self._command, self._environment, self._arguments)
            except ZygoteFailed:
                self._has_failed = True
                await link.aclose()
                raise
            except BaseException:
                await link.aclose()
                raise
            self._link = link
            return link


class ZygoteLink:
    """One process of a zygote, and what was forked from it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._process: WorkerProcess | None = None
        self._control: socket.socket | None = None
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._asked: dict[int, asyncio.Future[ForkedTransport]] = {}
        self._forked: dict[int, ForkedTransport] = {}  # those whose status is not known
        self._ids = itertools.count(1)

    @property
    def is_open(self) -> bool:
        return self._control is not None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(
        self, command: Sequence[str], environment: Mapping[str, str], arguments: Sequence[str]
    ) -> None:
        """Until it has imported all. Raises ZygoteFailed."""
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = control
        control.setblocking(False)
        self._loop.add_reader(control.fileno(), self._hear)
        try:
            with theirs:
                self._process = await WorkerProcess.start(
                    [*command, str(theirs.fileno()), *arguments],
                    {
                        **{name: environment[name] for name in environment.keys() - {"PYTHONPATH"}},
                        PARENT_VARIABLE: str(os.getpid()),
                    },
                    "/",
                    _log_line,
                    [theirs.fileno()],
                )
            async with asyncio.timeout(READY_S):
                await self._ready
        except TimeoutError:
            raise ZygoteFailed(f"it was not ready within {READY_S:g} s") from None
        except OSError as error:
            raise ZygoteFailed(f"{command[0]} cannot be started: {error.strerror}") from error
        logger.info("Workers are forked from process %d.", self._process.pid)

    async def fork(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        working_dir: str,
        sink: LineSink,
        descriptors: Sequence[int],
    ) -> WorkerProcess:
        """Raises ZygoteFailed, or OSError where an ordinary start would meet the same."""
        number = next(self._ids)
        message = {
            "id": number,
            "command": list(command),
            # It ends with the pipe of its life; its parent is somebody else.
            "environment": {
                name: environment[name] for name in environment.keys() - {PARENT_VARIABLE}
            },
            "folder": working_dir,
            "descriptors": list(descriptors),
        }
        pipes = Pipes()
        try:
            forked = await self._ask(number, message, [*pipes.theirs, *descriptors])
        except BaseException:
            pipes.close_ours()  # and with its life the worker ends, if there is one by now
            raise
        finally:
            pipes.close_theirs()
        return await forked.open(WorkerProcess(sink), pipes)

    async def aclose(self) -> None:
        self._lose("it was ended")
        if self._process is not None:
            await self._process.aclose()

    async def _ask(
        self, number: int, message: Mapping[str, Any], descriptors: Sequence[int]
    ) -> ForkedTransport:
        if self._control is None:
            raise ZygoteFailed("it has ended")
        answer: asyncio.Future[ForkedTransport] = self._loop.create_future()
        self._asked[number] = answer
        try:
            try:
                socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)
            except OSError as error:  # it does not read, or the message is too large
                raise ZygoteFailed(f"it cannot be asked: {error.strerror}") from error
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            # The next worker gets a new one; those that this one has forked go on.
            self._lose(f"it did not answer within {ANSWER_S:g} s")
            if self._process is not None:
                self._process.kill()
            raise ZygoteFailed(f"it did not answer within {ANSWER_S:g} s") from None
        except BaseException:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result().close()
            raise
        finally:
            del self._asked[number]

    def _hear(self) -> None:
        while (control := self._control) is not None:
            try:
                message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            if not message:
                self._lose("it has ended")
                return
            self._heard(json.loads(message), descriptors)

    def _heard(self, said: dict[str, Any], descriptors: Sequence[int]) -> None:
        number = said.get("id")
        if number is None:
            if not self._ready.done():
                if "unfit" in said:
                    self._ready.set_exception(ZygoteFailed(said["unfit"]))
                else:
                    self._ready.set_result(None)
            return
        if "status" in said:
            if (forked := self._forked.pop(number, None)) is not None:
                forked.ended(said["status"])
            return
        answer = self._asked.get(number)
        if "pid" in said:
            forked = ForkedTransport(said["pid"], descriptors[0])
            self._forked[number] = forked
            if answer is None or answer.done():
                forked.close()  # nobody waits any more, and so the worker's life is over
            else:
                answer.set_result(forked)
        elif answer is not None and not answer.done():
            if "errno" in said:
                answer.set_exception(OSError(said["errno"], os.strerror(said["errno"])))
            else:
                answer.set_exception(ZygoteFailed(said["unfit"]))

    def _lose(self, reason: str) -> None:
        """It is of no use any more. Those that it has forked are watched by their pidfds."""
        if self._control is None:
            return
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        self._control = None
        waiters: list[asyncio.Future[Any]] = [self._ready, *self._asked.values()]
        for waiting in waiters:
            if not waiting.done():
                waiting.set_exception(ZygoteFailed(reason))
        self._forked.clear()


class Pipes:
    """A forked worker's output, error and life: the ends that it gets, and ours."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.theirs: list[int] = []
        self._ours: list[int] = []
        try:
            for _ in range(2):
                reader, writer = os.pipe()
                self._ours.append(reader)
                self.theirs.append(writer)
            reader, writer = os.pipe()
            self._ours.append(writer)
            self.theirs.append(reader)
        except BaseException:
            self.close_ours()
            self.close_theirs()
            raise

    def take_ours(self) -> tuple[int, int, int]:
        """Output, error and life; the caller closes them."""
        output, error, life = self._ours
        self._ours.clear()
        return output, error, life

    def close_ours(self) -> None:
        _close_all(self._ours)

    def close_theirs(self) -> None:
        _close_all(self.theirs)


class ForkedTransport(asyncio.SubprocessTransport):
    """What the event loop makes of a child of its own, for one that was forked elsewhere.

    It owns the worker's pidfd, life and the reading ends of its streams.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._pid = pid
        self._owned = [pidfd]
        self._status: int | None = None
        self._process: WorkerProcess | None = None
        self._streams: list[asyncio.ReadTransport] = []
        self._patience: asyncio.TimerHandle | None = None
        self._loop.add_reader(pidfd, self._seen_to_end, pidfd)

    async def open(self, process: WorkerProcess, pipes: Pipes) -> WorkerProcess:
        """Report to `process` from now on; returns it."""
        *streams, life = pipes.take_ours()
        self._owned.append(life)
        self._process = process
        process.connection_made(self)
        files = [os.fdopen(stream, "rb", 0) for stream in streams]
        try:
            for number, file in enumerate(files, start=1):
                transport, _ = await self._loop.connect_read_pipe(
                    functools.partial(_Stream, process, number), file
                )
                self._streams.append(transport)
        except BaseException:
            for file in files[len(self._streams) :]:
                file.close()
            self.close()
            raise
        if self._status is not None:
            process.process_exited()
        return process

    def ended(self, status: int) -> None:
        """status: as `subprocess` counts. The first word counts."""
        if self._status is None:
            self._status = status
            self._forget_patience()
            if self._process is not None:
                self._process.process_exited()

    def get_pid(self) -> int:
        return self._pid

    def get_returncode(self) -> int | None:
        return self._status

    def close(self) -> None:
        self._forget_patience()
        for stream in self._streams:
            stream.close()
        if self._owned:
            self._loop.remove_reader(self._owned[0])
            _close_all(self._owned)

    def _seen_to_end(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        if self._status is None:
            self._patience = self._loop.call_later(STATUS_S, self._status_is_missing)

    def _status_is_missing(self) -> None:
        status = _kept_status(self._owned[0])
        if status is None:
            logger.warning("How worker %d ended is not known: its zygote is gone.", self._pid)
            status = UNKNOWN_STATUS
        self.ended(status)

    def _forget_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


class _Stream(asyncio.Protocol):
    """One of a worker's streams."""

    def __init__(self, process: WorkerProcess, number: int) -> None:
        self._process = process
        self._number = number

    def data_received(self, data: bytes) -> None:
        self._process.pipe_data_received(self._number, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._process.pipe_connection_lost(self._number, exc)


def _kept_status(pidfd: int) -> int | None:
    """How a process ended that somebody else has waited for; None before Linux 6.15."""
    information = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(information, 0, PIDFD_INFO_EXIT, 0)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, information)
    except OSError:
        return None
    mask, status = _PIDFD_INFO.unpack(information)
    return os.waitstatus_to_exitcode(status) if mask & PIDFD_INFO_EXIT else None


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _log_line(stream: str, line: str) -> None:
    level, text = split_level(line)
    if level is None:
        level = logging.INFO if stream == "stdout" else logging.WARNING
    logger.log(level, "%s", text, extra={"thread_name": "zygote"})
