import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from ts.metrics import process_memory_metric, system_metrics
from ts.metrics.dimension import Dimension
from ts.metrics.metric import Metric

ROOT = Path(__file__).parents[3]
COLLECTOR = ROOT / "ts" / "metrics" / "metric_collector.py"
GIB = 1 << 30


class FakeNvml(ModuleType):
    """A driver with two devices; the second one is busy."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        super().__init__("pynvml")
        self.is_open = False
        self.fails_to_open = False

    def nvmlInit(self):
        if self.fails_to_open:
            raise self.NVMLError("no driver")
        self.is_open = True

    def nvmlShutdown(self):
        self.is_open = False

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return {"GPU-a": 0, "GPU-b": 1}[uuid]

    def nvmlDeviceGetMemoryInfo(self, handle):
        assert self.is_open
        return SimpleNamespace(total=8 * GIB, used=2 * GIB * handle)

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=90 * handle)


@pytest.fixture(autouse=True)
def collected(monkeypatch):
    metrics = []
    monkeypatch.setattr(system_metrics, "system_metrics", metrics)
    return metrics


@pytest.fixture
def nvml(monkeypatch):
    module = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return module


def text(metrics):
    return [str(metric).rsplit("|#hostname", 1)[0] for metric in metrics]


GPU_LINES = [
    "GPUMemoryUtilization.Percent:{0}|#Level:Host,device_id:{3}",
    "GPUMemoryUsed.Megabytes:{1}|#Level:Host,device_id:{3}",
    "GPUUtilization.Percent:{2}|#Level:Host,device_id:{3}",
]


def gpu_lines(*values):
    return [line.format(*values) for line in GPU_LINES]


def test_gpus_are_numbered_like_the_devices_of_workers(nvml, collected, monkeypatch):
    system_metrics.collect_gpu_metrics(2)
    assert text(collected) == gpu_lines(0.0, 0.0, 0, 0) + gpu_lines(25.0, 2048.0, 90, 1)
    assert not nvml.is_open

    for visible in ("1", "GPU-b"):
        collected.clear()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        system_metrics.collect_gpu_metrics(2)
        assert text(collected) == gpu_lines(25.0, 2048.0, 90, 0)


def test_only_the_gpus_of_the_server_are_asked(nvml, collected):
    system_metrics.collect_gpu_metrics(1)
    assert len(collected) == 3
    collected.clear()
    system_metrics.collect_gpu_metrics(0)
    assert collected == []


def test_missing_gpu_support_is_an_error_line(nvml, collected, monkeypatch, caplog):
    nvml.fails_to_open = True
    system_metrics.collect_gpu_metrics(1)
    assert "no driver" in caplog.text
    monkeypatch.setitem(sys.modules, "pynvml", None)
    system_metrics.collect_gpu_metrics(1)
    assert "pip install nvidia-ml-py" in caplog.text
    assert collected == []


def test_a_custom_module_is_collected_gpus_first_then_by_name(capsys):
    called = []

    def record(name):
        called.append(name)
        system_metrics.system_metrics.append(Metric(name, 1, "percent", [Dimension("a", "b")]))

    module = ModuleType("custom")
    module.b_metric = lambda: record("b")
    module.a_metric = lambda: record("a")
    module.z_gpus = lambda count: record(f"gpus{count}")
    module.z_gpus_old_name = module.z_gpus
    module._helper = lambda: record("never")
    module.LIMIT = 5
    module.collect_all = system_metrics.collect_all
    system_metrics.collect_all(module, 3)
    assert called == ["gpus3", "a", "b"]
    assert [line.split("|")[0] for line in capsys.readouterr().out.split("\n")] == [
        "gpus3.Percent:1",
        "a.Percent:1",
        "b.Percent:1",
        "",
        "",
    ]


def test_memory_of_processes(capsys):
    process_memory_metric.check_process_mem_usage(io.StringIO(f"{os.getpid()},999999999\n"))
    own, gone = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{os.getpid()}:[1-9]\d+", own)
    assert gone == "999999999:0"
    process_memory_metric.check_process_mem_usage(io.StringIO("\n"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("start", [[str(COLLECTOR)], ["-m", "ts.metrics.metric_collector"]])
def test_the_collector_prints_what_the_frontend_reads(start):
    done = subprocess.run(
        [sys.executable, "-W", "error", *start, "--gpu", "0"],
        input=f"{os.getpid()}\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    metrics, memory = done.stdout.split("\n\n")
    assert done.stderr == ""
    assert memory.strip().startswith(f"{os.getpid()}:")
    pattern = r"(\w+\.\w+):[\d.]+\|#Level:Host\|#hostname:[^,]+,\d+"
    assert [re.fullmatch(pattern, line)[1] for line in metrics.splitlines()] == [
        "CPUUtilization.Percent",
        "DiskAvailable.Gigabytes",
        "DiskUsage.Gigabytes",
        "DiskUtilization.Percent",
        "MemoryAvailable.Megabytes",
        "MemoryUsed.Megabytes",
        "MemoryUtilization.Percent",
    ]
