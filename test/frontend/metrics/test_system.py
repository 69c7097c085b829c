import asyncio
import os
import sys

import pytest

from ts_frontend.metrics.system import (
    Measure,
    SystemMetrics,
    collect_measures,
    parse_collector_output,
    resident_bytes,
)

HOST_MEASURES = [
    "CPUUtilization",
    "DiskAvailable",
    "DiskUsage",
    "DiskUtilization",
    "MemoryAvailable",
    "MemoryUsed",
    "MemoryUtilization",
]

COLLECTOR = """
import os, sys
pids = sys.stdin.readline().strip()
print(f"CPUUtilization.Percent:12.5|#Level:Host|#hostname:x,1700000000")
print(f"GPUMemoryUsed.Megabytes:7.0|#Level:Host,device_id:{sys.argv[2]}|#hostname:x,1700000000")
print("not a metric")
print()
for pid in pids.split(","):
    print(f"{pid}:{int(pid) * 10}")
print("complaint from", os.getcwd(), file=sys.stderr)
"""


@pytest.fixture
def recorded():
    return []


@pytest.fixture
def record(recorded):
    return lambda name, labels, value: recorded.append(Measure(name, tuple(labels), value))


def test_measures_of_this_machine():
    measures = collect_measures(0)
    assert [measure.name for measure in measures] == HOST_MEASURES
    values = {measure.name: measure.value for measure in measures}
    assert all(measure.labels == ("Host",) for measure in measures)
    assert 0 < values["MemoryUtilization"] <= 100
    assert values["MemoryAvailable"] > 1  # megabytes
    assert 0 <= values["CPUUtilization"] <= 100


def test_gpus_that_cannot_be_asked_cost_only_their_measures():
    assert [m.name for m in collect_measures(8) if not m.name.startswith("GPU")] == HOST_MEASURES


async def test_the_loop_collects_at_once_and_again():
    collections = 0
    is_repeated = asyncio.Event()

    def record(name, labels, value):
        nonlocal collections
        collections += name == HOST_MEASURES[0]
        if collections == 2:
            is_repeated.set()

    task = asyncio.create_task(SystemMetrics(record, interval_s=0.001).run())
    async with asyncio.timeout(20):
        await is_repeated.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_collector_of_the_user(record, recorded, tmp_path, caplog):
    (tmp_path / "collect.py").write_text(COLLECTOR)
    system = SystemMetrics(
        record,
        worker_pids=lambda: [4, 5],
        command="collect.py --gpu  1",
        python=sys.executable,
        home=str(tmp_path),
        environment=os.environ,
    )
    await system.collect()
    assert recorded == [
        Measure("CPUUtilization", ("Host",), 12.5),
        Measure("GPUMemoryUsed", ("Host", "1"), 7.0),
    ]
    assert system.memory_usage(5) == 50
    assert "Failed to parse metrics line: not a metric" in caplog.text
    assert f"complaint from {tmp_path}" in caplog.text


async def test_a_collector_that_cannot_run_costs_one_collection(record, recorded, caplog):
    system = SystemMetrics(record, command="collect.py", python="/nowhere/python")
    await system.collect()
    assert recorded == []
    assert "System metrics could not be collected" in caplog.text


async def test_a_collector_that_hangs_is_ended(record, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("ts_frontend.metrics.system._COLLECTOR_TIMEOUT_S", 0.2)
    (tmp_path / "collect.py").write_text("import time; time.sleep(600)")
    system = SystemMetrics(record, command="collect.py", python=sys.executable, home=str(tmp_path))
    await system.collect()
    assert "did not end within 0.2 s" in caplog.text


def test_collector_output_with_odd_lines():
    measures, sizes = parse_collector_output("\n12:34\nx:1\n5:None\n6\n")
    assert measures == []
    assert sizes == {12: 34}


def test_resident_bytes():
    sizes = resident_bytes([os.getpid(), 2**22 + 1])
    assert sizes[os.getpid()] > 1 << 20
    assert sizes[2**22 + 1] == 0
    assert SystemMetrics(lambda *_: None).memory_usage(os.getpid()) > 1 << 20
