"""What the operating system knows: processes of a server, their CPU time and memory, and whether
somebody else was using the machine.

Linux only: everything is read from /proc.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

# Every process of a server inherits this variable, so that it is found whoever started it and in
# whichever session it lives. Its value is one server's.
MARK = "TS_BENCHMARK_SERVER"

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CALIBRATION_STEPS = 400_000


class ProcessStat(NamedTuple):
    parent: int
    session: int
    cpu_s: float  # own, and that of children it has waited for
    started: int  # in ticks since boot; tells two users of one number apart
    is_zombie: bool


class Memory(NamedTuple):
    pss_mib: float  # proportional: pages shared by n processes count 1/n for each
    processes: int


class MachineTimes(NamedTuple):
    busy_s: float  # all processors, programs and kernel on their behalf
    stolen_s: float  # wanted, but given to another virtual machine


def parse_stat(text: str) -> ProcessStat:
    """text: /proc/PID/stat. The name in it may hold blanks and parentheses."""
    fields = text.rpartition(")")[2].split()
    ticks = sum(int(field) for field in fields[11:15])
    return ProcessStat(
        parent=int(fields[1]),
        session=int(fields[3]),
        cpu_s=ticks / _TICKS_PER_S,
        started=int(fields[19]),
        is_zombie=fields[0] == "Z",
    )


def parse_machine_times(text: str) -> MachineTimes:
    """text: /proc/stat.

    Interrupt time is left out: loopback traffic is handled there on behalf of server and client,
    and would look like a stranger's.
    """
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = (
        int(field) for field in text.split("\n", 1)[0].split()[1:9]
    )
    return MachineTimes((user + nice + system) / _TICKS_PER_S, steal / _TICKS_PER_S)


def machine_times() -> MachineTimes:
    return parse_machine_times(Path("/proc/stat").read_text())


def all_processes() -> dict[int, ProcessStat]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found[int(name)] = parse_stat(Path("/proc", name, "stat").read_text())
            except (OSError, IndexError):  # it has ended meanwhile
                continue
    return found


class ProcessTree:
    """A server's processes: the marked, the descendants, and the sessions of both.

    The mark alone is not enough, since programs that change their title may overwrite the
    environment that /proc shows; descent alone is not, since daemons leave their parents.
    """

    def __init__(self, root: int, mark: str) -> None:
        self._root = root
        self._mark = f"{MARK}={mark}".encode()
        self._known: dict[int, int] = {}  # process -> when it started

    def processes(self) -> dict[int, ProcessStat]:
        """Those that exist now, zombies included: they hold CPU time nobody has collected yet."""
        everything = all_processes()
        members = {
            pid
            for pid, stat in everything.items()
            if self._known.get(pid) == stat.started or pid == self._root or self._is_marked(pid)
        }
        own_session = os.getsid(0)
        grew = True
        while grew:
            sessions = {everything[pid].session for pid in members if pid in everything}
            sessions.discard(own_session)
            more = {
                pid
                for pid, stat in everything.items()
                if pid not in members and (stat.parent in members or stat.session in sessions)
            }
            members |= more
            grew = bool(more)
        members.discard(os.getpid())
        found = {pid: everything[pid] for pid in members if pid in everything}
        self._known = {pid: stat.started for pid, stat in found.items()}
        return found

    def alive(self) -> list[int]:
        return [pid for pid, stat in self.processes().items() if not stat.is_zombie]

    def cpu_s(self) -> float:
        """CPU time of all of them since they began, ended children included."""
        return sum(stat.cpu_s for stat in self.processes().values())

    def memory(self) -> Memory:
        sizes = [size for pid in self.alive() if (size := _pss_kib(pid)) is not None]
        return Memory(sum(sizes) / 1024, len(sizes))

    def _is_marked(self, pid: int) -> bool:
        try:
            environment = Path("/proc", str(pid), "environ").read_bytes()
        except OSError:  # another user's, or ended
            return False
        return self._mark in environment.split(b"\0")


def _pss_kib(pid: int) -> int | None:
    try:
        for line in Path("/proc", str(pid), "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return None


def own_cpu_s() -> float:
    """Of this program and of the load clients it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def calibrate() -> float:
    """Milliseconds of a fixed loop: how fast this machine is at the moment."""
    began = time.perf_counter()
    total = 0
    for number in range(_CALIBRATION_STEPS):
        total += number & 7
    return (time.perf_counter() - began) * 1000


class NoiseLimits(NamedTuple):
    """Fixed before a run and blind to its result. Fractions of all processors' time."""

    foreign: float = 0.05
    stolen: float = 0.05
    slowdown: float = 1.5  # calibration, relative to the fastest one of the whole run


def noise_reasons(
    limits: NoiseLimits,
    *,
    elapsed_s: float,
    foreign_s: float,
    stolen_s: float,
    slowdown: float,
    processors: int,
) -> list[str]:
    """Why a measurement should not be trusted; empty when it may be."""
    capacity = elapsed_s * processors
    reasons = []
    if foreign_s > limits.foreign * capacity:
        reasons.append(f"other programs used {foreign_s / capacity:.0%}")
    if stolen_s > limits.stolen * capacity:
        reasons.append(f"{stolen_s / capacity:.0%} stolen")
    if slowdown > limits.slowdown:
        reasons.append(f"machine {slowdown:.1f} times slower than at its best")
    return reasons


def describe_machine() -> dict[str, str]:
    """What a reader needs to place the figures."""
    memory_kib = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processors": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
        "memory": f"{memory_kib / 1024 / 1024:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
