"""Measurements of the host: CPU, memory, disk and GPUs.

Each function without a leading underscore appends Metric objects to the module list
`system_metrics`, and `collect_all` calls them all. A custom collector may add to that list itself,
or hand a module of its own to `collect_all`.
"""

from __future__ import annotations

import inspect
import logging
import os
from types import FunctionType, ModuleType
from typing import Any

import psutil

from ts.metrics.dimension import Dimension
from ts.metrics.metric import Metric

logger = logging.getLogger(__name__)

MIB = 1 << 20
GIB = 1 << 30
DISK_PATH = "/"
CPU_SAMPLE_S = 0.1  # without a sample the first answer of a process is always 0.0

system_metrics: list[Metric] = []
dimension = [Dimension("Level", "Host")]


def cpu_utilization() -> None:
    """Percentage of CPU time in use over a short sample."""
    _record("CPUUtilization", psutil.cpu_percent(interval=CPU_SAMPLE_S), "percent")


def memory_used() -> None:
    """Used memory in MiB."""
    _record("MemoryUsed", psutil.virtual_memory().used / MIB, "MB")


def memory_available() -> None:
    """Memory that can be had without swapping, in MiB."""
    _record("MemoryAvailable", psutil.virtual_memory().available / MIB, "MB")


def memory_utilization() -> None:
    """Percentage of memory in use."""
    _record("MemoryUtilization", psutil.virtual_memory().percent, "percent")


def disk_used() -> None:
    """Used space of the root file system in GiB."""
    _record("DiskUsage", psutil.disk_usage(DISK_PATH).used / GIB, "GB")


def disk_utilization() -> None:
    """Percentage of the root file system in use."""
    _record("DiskUtilization", psutil.disk_usage(DISK_PATH).percent, "percent")


def disk_available() -> None:
    """Free space of the root file system in GiB."""
    _record("DiskAvailable", psutil.disk_usage(DISK_PATH).free / GIB, "GB")


def collect_gpu_metrics(num_of_gpu: int) -> None:
    """Memory and compute utilization of the first `num_of_gpu` NVIDIA devices.

    Asks the driver through NVML instead of torch: importing torch takes seconds, and creating a
    CUDA context takes device memory from the models. Devices NVML cannot see are left out.
    """
    if num_of_gpu <= 0:
        return
    try:
        import pynvml
    except ImportError:
        logger.error("GPU metrics need NVML; install it with: pip install nvidia-ml-py")
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.error("GPU metrics are not available: %s", error)
        return
    try:
        for device_id, handle in enumerate(_nvml_handles(pynvml)[:num_of_gpu]):
            _record_gpu(pynvml, device_id, handle)
    except pynvml.NVMLError as error:
        logger.error("GPU metrics are incomplete: %s", error)
    finally:
        pynvml.nvmlShutdown()


gpu_utilization = collect_gpu_metrics  # its name in released versions of TorchServe


def collect_all(mod: ModuleType, num_of_gpu: int) -> None:
    """Call every collector of `mod`, then print the collected metrics and an empty line.

    GPU collectors, recognised by taking an argument, come first; the others follow by name.
    """
    collectors: dict[FunctionType, str] = {}
    for name, member in vars(mod).items():
        is_collector = isinstance(member, FunctionType) and not name.startswith("_")
        if is_collector and member is not collect_all:
            collectors.setdefault(member, name)
    takes_count = {
        function: bool(inspect.signature(function).parameters) for function in collectors
    }
    for function in sorted(collectors, key=lambda f: (not takes_count[f], collectors[f])):
        if takes_count[function]:
            function(num_of_gpu)
        else:
            function()
    for metric in system_metrics:
        print(metric)
    print()


def _record(name: str, value: float, unit: str, dimensions: list[Dimension] | None = None) -> None:
    system_metrics.append(Metric(name, value, unit, dimensions or dimension))


def _nvml_handles(pynvml: Any) -> list[Any]:
    """The devices in the order in which CUDA numbers them for the workers."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
    handles = []
    for entry in visible.split(","):
        name = entry.strip()
        if name.isdigit():
            handles.append(pynvml.nvmlDeviceGetHandleByIndex(int(name)))
        elif name:
            handles.append(pynvml.nvmlDeviceGetHandleByUUID(name))
    return handles


def _record_gpu(pynvml: Any, device_id: int, handle: Any) -> None:
    dimensions = [*dimension, Dimension("device_id", device_id)]
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    _record("GPUMemoryUtilization", memory.used * 100 / memory.total, "percent", dimensions)
    _record("GPUMemoryUsed", memory.used / MIB, "MB", dimensions)
    utilization = pynvml.nvmlDeviceGetUtilizationRates(handle)
    _record("GPUUtilization", utilization.gpu, "percent", dimensions)
