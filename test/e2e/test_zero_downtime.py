"""A server that ends, and a version that is replaced by hand, at a steady 200 requests a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.load import Ask, Ledger, Load
from serving import MODELS, RunningServer, archive, start_server

RATE_PER_S = 200
LANES = 16


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for version in ("1.0", "2.0"):
        archive(folder, "ids", MODELS / "ids.py", version=version, file_name=f"ids-{version}")
    return folder


@pytest.fixture
def server(store: Path, tmp_path: Path) -> Iterator[RunningServer]:
    running = start_server(tmp_path / "server", store, load_models="ids-1.0.mar")
    running.session.put(
        f"{running.management}/models/ids?min_worker=2&max_worker=2&synchronous=true", timeout=60
    ).raise_for_status()
    yield running
    running.stop_and_leave_nothing()
    running.session.close()


def load_of(server: RunningServer, ledger: Ledger) -> Load:
    """Every connection asks for the default version, and wants its own answer with a 200."""
    return Load(server.inference, [Ask("raw", "ids")], ledger, lanes=LANES, rate_per_s=RATE_PER_S)


async def wait_for(ledger: Ledger, sent: int) -> None:
    """Until so many more have been sent."""
    wanted = ledger.sent + sent
    deadline = time.monotonic() + 60
    while ledger.sent < wanted:
        assert time.monotonic() < deadline, str(ledger)
        await asyncio.sleep(0.02)


async def test_a_server_that_is_told_to_end_answers_all_it_has_accepted(
    server: RunningServer,
) -> None:
    """SIGTERM at 200 requests/s: sent = answered, none refused, status 0."""
    ledger = Ledger()
    async with load_of(server, ledger).running():
        await wait_for(ledger, 400)
        assert await asyncio.to_thread(server.stop) == 0
    assert ledger.imbalance() == [], str(ledger)
    assert ledger.count(200) == ledger.sent, str(ledger)
    assert ledger.not_connected  # the load had gone on: from the end on nobody was let in


async def test_a_new_version_takes_over_and_the_old_one_goes_unseen(
    server: RunningServer,
) -> None:
    """Register 2.0, warm it, make it the default, drain and remove 1.0: no answer but 200."""
    models = f"{server.management}/models/ids"
    ledger = Ledger()

    async def step(method: str, url: str) -> None:
        answer = await asyncio.to_thread(server.session.request, method, url, timeout=60)
        assert answer.status_code == 200, answer.text
        await wait_for(ledger, 200)

    async with load_of(server, ledger).running():
        await wait_for(ledger, 200)
        await step("POST", f"{server.management}/models?url=ids-2.0.mar&initial_workers=2")
        await step("PUT", f"{models}/2.0/set-default")
        await step("PUT", f"{models}/1.0?min_worker=0&synchronous=true")
        await step("DELETE", f"{models}/1.0")
    assert ledger.imbalance() == [], str(ledger)
    assert ledger.count(200) == ledger.sent >= 1000, str(ledger)
    assert ledger.not_connected == 0
    described = server.session.get(f"{models}/all", timeout=20).json()
    assert [version["modelVersion"] for version in described] == ["2.0"]
