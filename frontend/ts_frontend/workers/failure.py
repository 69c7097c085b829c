"""`WorkerFailure`: why a worker's process is of no use any more, in one value for everybody.

The log, the operator's description of a worker, the metrics and the error that clients get all read
the same object, so that they never tell different stories.
"""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass


class FailureKind(enum.Enum):
    """What happened; the values are words for programs."""

    NOT_STARTED = "not_started"  # no process, or one that nobody could connect to
    LOAD_TIMEOUT = "load_timeout"
    LOAD_REFUSED = "load_refused"  # the worker said that it cannot load the model
    SELF_TEST = "self_test"  # it has failed the test that its archive brings
    EXIT = "exit"
    SIGNAL = "signal"
    OUT_OF_MEMORY = "out_of_memory"  # killed, and the kernel has counted a kill for lack of memory
    DISCONNECTED = "disconnected"  # it closed the connection and lived on
    BAD_REPLY = "bad_reply"
    NO_REPLY = "no_reply"  # within responseTimeout
    UNRESPONSIVE = "unresponsive"  # stopped, or no answer to a ping
    CANCEL_IGNORED = "cancel_ignored"


class Cause(enum.Enum):
    """Why it happened, as far as that is known; the values are words for programs."""

    OUT_OF_MEMORY = "out_of_memory"
    SEGFAULT = "segfault"
    CPU_TIME = "cpu_time"  # maxCpuTimeInSec
    SIGNAL = "signal"
    EXIT = "exit"  # it called for its end itself: SystemExit, os._exit
    EXCEPTION = "exception"
    IMPORT_ERROR = "import_error"
    SYNTAX_ERROR = "syntax_error"
    MISSING_FILE = "missing_file"
    BAD_HANDLER = "bad_handler"  # its module has nothing to call
    NOT_CONTAINED = "not_contained"  # what its model forbids it could not be taken from it


# While a model loads, the end of these is foreseeable: its archive would have to change.
_OF_THE_ARCHIVE = {
    "ImportError": Cause.IMPORT_ERROR,
    "ModuleNotFoundError": Cause.IMPORT_ERROR,
    "SyntaxError": Cause.SYNTAX_ERROR,
    "IndentationError": Cause.SYNTAX_ERROR,
    "TabError": Cause.SYNTAX_ERROR,
    "FileNotFoundError": Cause.MISSING_FILE,
    "ts.model_loader.BadHandlerError": Cause.BAD_HANDLER,
    "ts.containment.NotContainedError": Cause.NOT_CONTAINED,
}
_LASTING = frozenset(_OF_THE_ARCHIVE.values())
_SIGNALS = {11: Cause.SEGFAULT, 24: Cause.CPU_TIME}

_ENDED = frozenset({FailureKind.EXIT, FailureKind.SIGNAL, FailureKind.OUT_OF_MEMORY})

# The same request would fail the same way, and take as long again (contract: it fails at once).
_NEVER_RETRIED = frozenset({FailureKind.NO_REPLY, FailureKind.CANCEL_IGNORED})

# A SIGKILL that we did not send is the kernel's out-of-memory killer, or looks like it.
OUT_OF_MEMORY_CODES = frozenset({137, -9})


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """reason:     in words, without how the process ended.
    exit_code:  of a process that ended by itself; None where it did not, or a signal ended it.
    signal:     the signal that ended it, unless we had sent it.
    code:       what a worker that refused to load said (500, 507), as HTTP statuses.
    exception:  the last line of the traceback that it printed, "" if there was none.
    last_lines: the end of what it printed; for operators, not for clients.
    is_at_load: it had not loaded its model yet.
    """

    kind: FailureKind
    reason: str
    exit_code: int | None = None
    signal: int | None = None
    code: int | None = None
    exception: str = ""
    last_lines: tuple[str, ...] = ()
    is_at_load: bool = False

    @property
    def cause(self) -> Cause | None:
        """None where the kind says all that is known."""
        exception = self.exception.partition(":")[0]
        if self.is_out_of_memory or exception == "MemoryError":
            return Cause.OUT_OF_MEMORY
        if self.signal is not None:
            return _SIGNALS.get(self.signal, Cause.SIGNAL)
        if self.is_at_load and exception in _OF_THE_ARCHIVE:
            return _OF_THE_ARCHIVE[exception]
        if self.kind is FailureKind.EXIT or (
            self.kind is FailureKind.LOAD_REFUSED and self.exit_code is not None
        ):
            return Cause.EXCEPTION if exception else Cause.EXIT
        return None

    @property
    def cause_word(self) -> str:
        cause = self.cause
        return self.kind.value if cause is None else cause.value

    @property
    def is_lasting(self) -> bool:
        """Whether the same archive would fail the same way again."""
        return self.cause in _LASTING

    @property
    def is_out_of_memory(self) -> bool:
        return (
            self.code in (507, 413)
            or self.kind is FailureKind.OUT_OF_MEMORY
            or self.signal == 9
            or self.exit_code in OUT_OF_MEMORY_CODES
        )

    @property
    def ending(self) -> str:
        """How the process ended, "" if that says nothing: it was we who ended it, or it had said
        why before.
        """
        if self.kind is FailureKind.LOAD_REFUSED:
            return ""
        if self.kind is FailureKind.OUT_OF_MEMORY:
            return f"ended by signal {self.signal or 9}, out of memory"
        if self.signal is not None:
            return f"ended by signal {self.signal}"
        return "" if self.exit_code is None else f"exit code {self.exit_code}"

    @property
    def label(self) -> str:
        """For metrics: few and short values."""
        is_refused_memory = self.cause is Cause.OUT_OF_MEMORY and self.signal is None
        if self.is_lasting or (is_refused_memory and self.kind is not FailureKind.OUT_OF_MEMORY):
            return self.cause_word
        return self.ending if self.kind in _ENDED else self.kind.value

    def may_be_retried(self, batch_size: int) -> bool:
        """Whether a batch of that size that was on board may be run again.

        A request whose answer broke the protocol, alone, would break it again.
        """
        if self.kind in _NEVER_RETRIED:
            return False
        return self.kind is not FailureKind.BAD_REPLY or batch_size > 1

    def __str__(self) -> str:
        ending = f" ({self.ending})" if self.ending else ""
        return f"{self.reason}{ending}" + (f": {self.exception}" if self.exception else "")


# As Python prints it: `package.ModuleError: text`, at the start of a line.
_EXCEPTION = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?::.*)?")
MAX_EXCEPTION_CHARS = 300


def last_exception(lines: Iterable[str]) -> str:
    """The line of the last exception among printed `lines`, "" if there is none."""
    found = ""
    for line in lines:
        if _EXCEPTION.fullmatch(line):
            found = line
    return found[:MAX_EXCEPTION_CHARS]


def oom_kills() -> int | None:
    """How often the kernel has ended a process here for lack of memory; None if it does not say.

    "Here" is the control group that this server is in, or the machine.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        with open("/proc/self/cgroup") as file:
            group = next((line[3:].strip() for line in file if line.startswith("0::")), "")
        with contextlib.suppress(OSError):
            return _count_in(f"/sys/fs/cgroup{group}/memory.events")
        return _count_in("/proc/vmstat")
    return None


def _count_in(path: str) -> int:
    with open(path) as file:
        return int(dict(line.split() for line in file)["oom_kill"])
