"""Resident memory of the worker processes, which the frontend shows in describe."""

from __future__ import annotations

from typing import TextIO

import psutil


def get_cpu_usage(pid: int | str) -> int:
    """Resident memory of a process in bytes, 0 if it is gone (the name is historical)."""
    try:
        return int(psutil.Process(int(pid)).memory_info().rss)
    except (psutil.Error, ValueError):
        return 0  # workers end between the question and the answer


def check_process_mem_usage(stdin: TextIO) -> None:
    """Read one line of pids joined by `,` and print `<pid>:<resident bytes>` for each."""
    for pid in stdin.readline().split(","):
        if pid.strip():
            print(f"{pid.strip()}:{get_cpu_usage(pid)}")
