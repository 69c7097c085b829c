"""Whether to stay awake for what is about to come.

To be woken takes longer than a small handler runs, so a worker that is asked again and again gains
by looking for its next batch instead of sleeping until it comes, and so does the frontend that
waits for the answer of such a worker. It costs a processor meanwhile, which is free of charge only
where one has nothing to do: on a full machine others need it more. Two questions therefore come
before a wait without sleep: will it be short, and has the machine a processor for everybody who
wants to run?
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

LOAD_FILE = "/proc/loadavg"

# Version 2 and version 1 of control groups, and how each says that there is no limit.
QUOTA_FILES = (("/sys/fs/cgroup/cpu.max", "max"), ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1"))

# In the environment of a worker: the longest wait without sleep, in microseconds.
SPIN_VARIABLE = "TS_SPIN_US"

# To ask the kernel costs some microseconds; what it says of one moment is little, so the mean of
# many counts.
WAITS_PER_LOOK = 16
LOOK_WEIGHT = 0.1

# Waits without sleep are for who is asked again and again: nearly all of the last waits were short.
# Of requests that come at random some follow soon on the last one, and to wait for each of them
# would cost more than it spares.
WAIT_WEIGHT = 1 / 8
MOSTLY = 0.8

# Those who run or want to, ourselves among them, may on average be so many more than there are
# processors: now and then something short comes in between.
TOLERANCE = 0.2


class Wakefulness:
    """longest_s: a wait without sleep ends after so many seconds; 0 for never one at all."""

    def __init__(self, longest_s: float, load: ProcessorLoad | None = None) -> None:
        self.longest_s = longest_s
        self._load = load
        self._soon = 0.0  # the share of short waits, of late

    @classmethod
    def of_this_machine(cls, longest_s: float) -> Wakefulness:
        """Never awake where the load cannot be seen, or processor time is rationed."""
        load = ProcessorLoad.open() if longest_s else None
        return cls(0.0 if load is None else longest_s, load)

    def begin_wait(self) -> bool:
        """Whether the wait that begins now is without sleep at first; asked once for each."""
        return self._soon > MOSTLY and (self._load is None or self._load.find_free())

    def waited(self, seconds: float) -> None:
        """Told after each wait."""
        self._soon += ((seconds < self.longest_s) - self._soon) * WAIT_WEIGHT


class ProcessorLoad:
    """How many processes and threads of the machine want to run, beside its processors.

    file: descriptor of /proc/loadavg, whose fourth field begins with that number (man 5 proc).
    """

    def __init__(self, file: int, processors: int) -> None:
        self._file = file
        self._processors = processors
        self._running = float(processors)
        self._asked = 0

    @classmethod
    def open(cls) -> ProcessorLoad | None:
        """None where it cannot be known, one processor is all, or time is rationed: then every
        microsecond spent awake is taken from those who share the ration.
        """
        if not sys.platform.startswith("linux") or _has_quota():
            return None
        processors = len(os.sched_getaffinity(0))
        if processors < 2:
            return None
        try:
            return cls(os.open(LOAD_FILE, os.O_RDONLY | os.O_CLOEXEC), processors)
        except OSError:
            return None

    @property
    def has_free_processor(self) -> bool:
        return self._running <= self._processors + TOLERANCE

    def find_free(self) -> bool:
        """Whether a processor is free, asked at the begin of each wait without sleep."""
        if not self._asked:
            self.look()
        self._asked = (self._asked + 1) % WAITS_PER_LOOK
        return self.has_free_processor

    def look(self) -> None:
        """Count again; what cannot be read is taken for a full machine."""
        try:
            running = float(os.pread(self._file, 128, 0).split()[3].partition(b"/")[0])
        except (OSError, IndexError, ValueError):
            running = 2.0 * self._processors
        self._running += (running - self._running) * LOOK_WEIGHT


def _has_quota() -> bool:
    """Whether the container may use only so much processor time."""
    for file, unlimited in QUOTA_FILES:
        with contextlib.suppress(OSError):
            if not Path(file).read_text().startswith(unlimited):
                return True
    return False
