"""Workers that die, hang, stall and overdo it: every client gets an answer, the others their own,
and the model comes back.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable

import psutil
import pytest
from faults.load import Ask, Fate, Ledger, Load, echo_asks, is_marked_stream, stream_of
from serving import RunningServer, wait_until

# What a client of a worker that died may hear (contract: 500, or 507 after a SIGKILL; 503 after the
# second death with its request on board).
DEATHS = frozenset({200, 500, 503, 507})
MIB = 1024 * 1024

# The killing goes on for longer when this says so, in seconds.
LONG_S = int(os.environ.get("TS_FAULT_SECONDS", "0"))


@pytest.fixture(scope="module")
def server(start: Callable[..., RunningServer]) -> RunningServer:
    running = start(max_response_size=1_000_000, default_response_timeout=3)
    for name, options in {
        "ids": {"initial_workers": 2, "batch_size": 4, "max_batch_delay": 2},
        "misbehaves": {"initial_workers": 1},
        "marked_stream": {"initial_workers": 1},
        "marked_stream_async": {},
    }.items():
        answer = running.register(f"{name}.mar", **options)
        assert answer.status_code == 200, answer.text
    return running


@pytest.fixture(autouse=True)
def healthy(server: RunningServer) -> None:
    """Each test finds the workers up again that the one before took down."""
    server.wait_ready("ids", 2)
    server.wait_ready("misbehaves")
    server.wait_ready("marked_stream")


async def signal_workers(
    server: RunningServer, model: str, number: int, pause_s: float, times: int
) -> None:
    """Send one worker after the other a signal, the next when it may be up again."""
    for turn in range(times):
        await asyncio.sleep(pause_s)
        pids = [pid for pid in await asyncio.to_thread(server.worker_pids, model) if pid > 0]
        if pids:
            psutil.Process(pids[turn % len(pids)]).send_signal(number)


async def test_serve_281_every_request_is_answered_while_workers_are_killed(server) -> None:
    ledger = Ledger()
    load = Load(server.inference, echo_asks("ids"), ledger, lanes=12, expected=DEATHS)
    async with load.running():
        await signal_workers(server, "ids", signal.SIGKILL, 0.4, 6)
    assert ledger.imbalance() == [], str(ledger)
    assert ledger.count(200) > 100


@pytest.mark.timeout(LONG_S + 120)
async def test_ray_47219_a_worker_killed_every_two_seconds_costs_nobody_an_answer(server) -> None:
    """What runs on a killed worker runs again on its sibling: clients see nothing of it."""
    before = server.metric("ts_worker_restarts_total", "ids", cause="ended by signal 9")
    kills = max(2, LONG_S // 2)
    ledger = Ledger()
    load = Load(server.inference, echo_asks("ids"), ledger, lanes=8, rate_per_s=200)
    async with load.running():
        await signal_workers(server, "ids", signal.SIGKILL, 2, kills)
    server.wait_ready("ids", 2)
    deaths = server.metric("ts_worker_restarts_total", "ids", cause="ended by signal 9") - before
    text = server.session.get(f"{server.metrics}/metrics", timeout=20).text
    causes = re.findall(r"^ts_(?:worker_restarts|rerun|quarantined)\w*{.*", text, re.MULTILINE)
    print(f"{kills} kills, {deaths:.0f} deaths: {ledger}", *causes, sep="\n")
    assert ledger.imbalance() == [], str(ledger)
    assert ledger.not_connected == 0
    assert ledger.count(200) == ledger.sent
    assert deaths == kills


async def test_triton_8604_a_stopped_worker_is_replaced(server) -> None:
    """SIGSTOP: alive to the system, dead to its clients (triton#8604)."""
    ledger = Ledger()
    before = set(server.worker_pids("ids"))
    load = Load(server.inference, echo_asks("ids"), ledger, lanes=4, expected=DEATHS)
    async with load.running():
        await signal_workers(server, "ids", signal.SIGSTOP, 0.2, 1)
        await asyncio.to_thread(
            wait_until,
            lambda: any(
                server.metric("ts_worker_restarts_total", "ids", cause=cause)
                for cause in ("no_reply", "unresponsive")
            ),
            what="the end of the worker",
        )
    assert ledger.imbalance() == [], str(ledger)
    assert ledger.slowest_s < 8
    server.wait_ready("ids", 2)
    assert len(set(server.worker_pids("ids")) - before) == 1


@pytest.mark.parametrize(
    ("deed", "cause"),
    [
        ("segfault", "ended by signal 11"),
        ("_exit 5", "exit code 5"),
        ("exit 4", "exit code 4"),
        ("exit_slowly 6", "exit code 6"),
        ("exit_with_a_thread_left 7", "exit code 7"),
        ("hang", "no reply within responseTimeout"),
        ("huge 1500000", "could not be read: .*1500000"),
    ],
)
def test_serve_2300_a_death_is_answered_and_its_cause_is_named(server, deed, cause) -> None:
    answer = server.predict("misbehaves", f"mark\n{deed}")
    assert answer.status_code in (500, 503)  # once, or run again and dead again
    assert "orker died" in answer.json()["message"]
    server.wait_ready("misbehaves")
    assert server.predict("misbehaves", "after").text == "after"
    log = server.folder / "logs" / "ts_log.log"
    wait_until(
        lambda: re.search(f"-misbehaves_1.0 .*worker died: .*{cause}", log.read_text()), what=cause
    )
    if cause.startswith(("ended", "exit")):
        assert server.metric("ts_worker_restarts_total", "misbehaves", cause=cause) >= 1


def test_memory_that_is_not_there_fails_the_request_alone(server) -> None:
    pids = server.worker_pids("misbehaves")
    answer = server.predict("misbehaves", "mark\nhog")
    assert (answer.status_code, answer.json()["message"]) == (507, "Out of resources")
    assert server.worker_pids("misbehaves") == pids


@pytest.mark.parametrize("deed", ["babble 300000", "chatter 50000"])
async def test_a_handler_that_prints_without_end_holds_up_nobody(server, deed) -> None:
    process = psutil.Process(server.process.pid)
    before_bytes = process.memory_info().rss
    ledger = Ledger()
    load = Load(server.inference, echo_asks("ids"), ledger, lanes=2)
    async with load.running():
        answer = await asyncio.to_thread(server.predict, "misbehaves", f"mark\n{deed}")
    assert answer.text == "mark"
    assert ledger.imbalance() == [], str(ledger)
    assert ledger.slowest_s < 2
    grown = process.memory_info().rss - before_bytes
    assert grown < 64 * MIB, f"{grown / MIB:.0f} MiB"


async def test_streams_of_a_worker_that_dies_break_off_and_are_never_mixed_up(server) -> None:
    """The status of a stream is out: a cut is the one sign that is left (contract 4.6)."""
    ledger = Ledger()
    ask = Ask("stream", "marked_stream", stream_of(2000, 100), is_marked_stream)
    load = Load(server.inference, [ask], ledger, lanes=4, expected=DEATHS)
    async with load.running():
        await signal_workers(server, "marked_stream", signal.SIGKILL, 0.5, 1)
        began_s = time.monotonic()
        await asyncio.to_thread(
            wait_until, lambda: ledger.fates[Fate.CUT] >= 1, what="a stream that broke off"
        )
        assert time.monotonic() - began_s < 5
    assert ledger.imbalance(Fate.CUT) == [], str(ledger)


async def test_concurrent_streams_of_one_worker_keep_to_their_requests(server) -> None:
    ledger = Ledger()
    ask = Ask("stream", "marked_stream_async", stream_of(20), is_marked_stream)
    leaving = Ask("left", "marked_stream_async", stream_of(2000), leaves="reading", weight=2)
    load = Load(server.inference, [ask, leaving], ledger, lanes=12)
    async with load.running():
        await asyncio.sleep(2)
    assert ledger.imbalance(Fate.LEFT) == [], str(ledger)
    assert ledger.fates[Fate.LEFT] > 0
