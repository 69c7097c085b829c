"""Measures of the machine, taken every `metric_time_interval` seconds.

The server takes them itself: a process per minute that imports psutil to print ten lines is not
needed. Only where `system_metrics_cmd` names a collector is it run as TorchServe does (contract,
backend metrics document, section 8): pids on its stdin, metric lines, an empty line, `pid:bytes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import psutil

from ts_frontend.metrics.worker_lines import parse_metric_line

logger = logging.getLogger(__name__)

MIB = 1 << 20
GIB = 1 << 30
DISK_PATH = "/"
_COLLECTOR_TIMEOUT_S = 60.0
_COLLECTOR_MAX_BYTES = 1 << 20


class Measure(NamedTuple):
    """labels: the level, and a GPU's number; the host is added by who records it."""

    name: str
    labels: tuple[str, ...]
    value: float


class Recorder(Protocol):
    def __call__(self, name: str, labels: Sequence[str], value: float) -> None: ...


class SystemMetrics:
    """Collects in a loop, and knows how much memory the workers use.

    record:      takes each measure (`ServerMetrics.record_system`).
    worker_pids: the processes whose memory a collector is asked for.
    command:     a collector's script and arguments for `python`, run in `home`; None: our own.
    environment: the collector's, which also says which GPUs are visible.
    """

    def __init__(
        self,
        record: Recorder,
        *,
        gpu_count: int = 0,
        interval_s: float = 60,
        worker_pids: Callable[[], Sequence[int]] = lambda: (),
        command: str | None = None,
        python: str = "python3",
        home: str = ".",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._record = record
        self._gpu_count = gpu_count
        self._interval_s = interval_s
        self._worker_pids = worker_pids
        self._command = [python, *command.split()] if command else None
        self._home = home
        self._environment = environment
        self._reported_bytes: dict[int, int] = {}
        psutil.cpu_percent()  # begins the span that the first measure is about

    async def run(self) -> None:
        """Collect at once and then every interval, until cancelled."""
        while True:
            await self.collect()
            await asyncio.sleep(self._interval_s)

    async def collect(self) -> None:
        """One collection; a failure is logged and costs this one only."""
        try:
            if self._command is None:
                # In a thread: asking a driver or a network file system may block.
                measures = await asyncio.to_thread(
                    collect_measures,
                    self._gpu_count,
                    (self._environment or {}).get("CUDA_VISIBLE_DEVICES"),
                )
            else:
                measures = await self._run_collector(self._command)
        except (OSError, TimeoutError, ValueError, psutil.Error) as error:
            logger.error("System metrics could not be collected: %s", error or type(error).__name__)
            return
        for measure in measures:
            self._record(*measure)

    def memory_usage(self, pid: int) -> int:
        """Resident bytes of a worker, 0 if it is gone."""
        if pid in self._reported_bytes:
            return self._reported_bytes[pid]
        return resident_bytes([pid])[pid]

    async def _run_collector(self, command: Sequence[str]) -> list[Measure]:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._home,
            env=self._environment,
        )
        pids = ",".join(map(str, self._worker_pids()))
        try:
            async with asyncio.timeout(_COLLECTOR_TIMEOUT_S):
                output, errors = await process.communicate(f"{pids}\n".encode())
        except TimeoutError:
            raise TimeoutError(
                f"{command[1]} did not end within {_COLLECTOR_TIMEOUT_S:g} s"
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if errors:
            logger.error("System metrics collector: %s", errors.decode(errors="replace").strip())
        measures, self._reported_bytes = parse_collector_output(
            output[:_COLLECTOR_MAX_BYTES].decode(errors="replace")
        )
        return measures


def parse_collector_output(text: str) -> tuple[list[Measure], dict[int, int]]:
    """The measures before the empty line, and the bytes per pid after it."""
    measures = []
    bytes_of: dict[int, int] = {}
    is_measures = True
    for line in text.splitlines():
        if not line.strip():
            is_measures = False
        elif is_measures:
            metric = parse_metric_line(line)
            if metric is None:
                logger.error("Failed to parse metrics line: %s", line[:300])
            else:
                labels = tuple(value for _, value in metric.dimensions)
                measures.append(Measure(metric.name, labels, metric.value))
        else:
            pid, _, size = line.partition(":")
            if pid.strip().isdigit() and size.strip().isdigit():
                bytes_of[int(pid)] = int(size)
    return measures, bytes_of


def collect_measures(gpu_count: int, visible: str | None = None) -> list[Measure]:
    """All measures of the machine, in the order in which TorchServe's collector prints them.

    visible: CUDA_VISIBLE_DEVICES, None if it is not set.
    """
    host = ("Host",)
    disk = psutil.disk_usage(DISK_PATH)
    memory = psutil.virtual_memory()
    return [
        *(_gpu_measures(gpu_count, visible) if gpu_count else ()),
        Measure("CPUUtilization", host, psutil.cpu_percent()),
        Measure("DiskAvailable", host, disk.free / GIB),
        Measure("DiskUsage", host, disk.used / GIB),
        Measure("DiskUtilization", host, disk.percent),
        Measure("MemoryAvailable", host, memory.available / MIB),
        Measure("MemoryUsed", host, memory.used / MIB),
        Measure("MemoryUtilization", host, memory.percent),
    ]


def _gpu_measures(gpu_count: int, visible: str | None) -> list[Measure]:
    try:
        import pynvml
    except ImportError:
        return []  # the optional extra `gpu`
    measures: list[Measure] = []
    try:
        pynvml.nvmlInit()
        try:
            for number, handle in enumerate(_visible_devices(pynvml, visible)[:gpu_count]):
                labels = ("Host", str(number))
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
                measures += [
                    Measure("GPUMemoryUtilization", labels, 100 * memory.used / memory.total),
                    Measure("GPUMemoryUsed", labels, memory.used / MIB),
                    Measure("GPUUtilization", labels, float(busy)),
                ]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        logger.error("GPU metrics are not complete: %s", error)
    return measures


def _visible_devices(pynvml: Any, visible: str | None) -> list[Any]:
    """Handles in the workers' numbering: CUDA_VISIBLE_DEVICES renumbers, NVML does not follow."""
    if visible is None:
        count = pynvml.nvmlDeviceGetCount()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [
        pynvml.nvmlDeviceGetHandleByIndex(int(name))
        if name.isdigit()
        else pynvml.nvmlDeviceGetHandleByUUID(name)
        for name in names
    ]


def resident_bytes(pids: Iterable[int]) -> dict[int, int]:
    """Resident memory by pid, 0 where the process is gone or not ours to look at."""
    sizes = {}
    for pid in pids:
        try:
            sizes[pid] = psutil.Process(pid).memory_info().rss
        except psutil.Error:
            sizes[pid] = 0
    return sizes
