"""New versions that take over or are taken back while clients ask: no client sees any of it."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from faults.load import Ask, Ledger, Load
from serving import MODELS, SOURCE_PATHS, RunningServer, archive, start_server, wait_until

RATE_PER_S = 200
ENDED = ("DONE", "ROLLED_BACK", "ABORTED")
QUICK = {"canary": [25, 100], "step_s": 1, "min_requests": 20}
FOR_EVER = {"canary": [50], "step_s": 600, "min_requests": 0}

_numbers = itertools.count(1)


class Subject:
    """One model of this module's server; version 1.0 is registered with one worker."""

    def __init__(self, server: RunningServer, folder: Path, name: str = "") -> None:
        self.server = server
        self.name = name or f"m{next(_numbers)}"
        self._folder = folder
        self.add("1.0")
        answer = server.register(f"{self.name}-1.0.mar", initial_workers=1)
        assert answer.status_code == 200, answer.text

    def add(self, version: str, config: str = "", **more: object) -> str:
        """An archive in the store; returns its file's name."""
        path = self._folder / f"{self.name}-{version}.yaml"
        path.write_text(config or "behaves: well\n")
        archive(
            self.server.store,
            self.name,
            MODELS / "behaves.py",
            version=version,
            file_name=f"{self.name}-{version}",
            config_file=str(path),
            **more,
        )
        return f"{self.name}-{version}.mar"

    @property
    def url(self) -> str:
        return f"{self.server.management}/models/{self.name}"

    def post(self, **plan: object) -> Any:
        return self.server.session.post(f"{self.url}/rollout", json=plan, timeout=30)

    def start(self, **plan: object) -> None:
        answer = self.post(**plan)
        assert answer.status_code == 202, answer.text

    def status(self) -> dict[str, Any]:
        answer = self.server.session.get(f"{self.url}/rollout", timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.json()[0]

    def wait(self, *states: str, timeout_s: float = 40) -> dict[str, Any]:
        """The status when it is in one of `states`."""
        wait_until(lambda: self.status()["state"] in states, timeout_s, f"one of {states}")
        return self.status()

    def versions(self) -> dict[str, int]:
        """The registered versions with their numbers of workers; the default is the first."""
        default = self.server.describe(self.name)["modelVersion"]
        every = self.server.session.get(f"{self.url}/all", timeout=20).json()
        every.sort(key=lambda version: version["modelVersion"] != default)
        return {version["modelVersion"]: len(version["workers"]) for version in every}

    def answered_by(self) -> str:
        answer = self.server.predict(self.name, "who")
        assert (answer.status_code, answer.text) == (200, "who")
        return answer.headers["x-version"]

    @asynccontextmanager
    async def load(self) -> AsyncIterator[Ledger]:
        """Clients that ask without a version; each has to get its own answer with a 200."""
        ledger = Ledger(self.name)
        asks = [Ask("raw", self.name)]
        load = Load(self.server.inference, asks, ledger, lanes=6, rate_per_s=RATE_PER_S)
        async with load.running():
            yield ledger
        assert ledger.imbalance() == [], str(ledger)
        assert ledger.count(200) == ledger.sent

    async def roll_out_under_load(self, **plan: object) -> tuple[dict[str, Any], Ledger]:
        async with self.load() as ledger:
            await asyncio.to_thread(self.start, **plan)
            status = await asyncio.to_thread(self.wait, *ENDED)
            await asyncio.sleep(0.3)  # and a little of what comes after it
        return status, ledger


@pytest.fixture(scope="module")
def new(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Subject]:
    return lambda: Subject(server, tmp_path_factory.mktemp("configs"))


def canary_steps(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for step in status["steps"] if step["state"] == "CANARY"]


# Good versions.


async def test_serve_949_a_good_version_takes_over(new) -> None:
    subject = new()
    status, ledger = await subject.roll_out_under_load(url=subject.add("2.0"), **QUICK)
    assert status["state"] == "DONE", status
    first, second = canary_steps(status)
    assert (first["percent"], second["percent"]) == (25, 100)
    total = first["newVersion"]["requests"] + first["currentVersion"]["requests"]
    assert first["newVersion"]["requests"] == pytest.approx(total / 4, abs=4)
    assert first["newVersion"]["failures"] == second["newVersion"]["failures"] == 0
    assert status["movedRequests"] == 0
    assert subject.versions() == {"2.0": 1}
    assert subject.answered_by() == "2.0"
    assert ledger.slowest_s < 2


async def test_a_version_that_loads_slowly_gets_nothing_before(new) -> None:
    subject = new()
    archive_name = subject.add("2.0", "behaves: loads slowly\n")
    status, ledger = await subject.roll_out_under_load(url=archive_name, canary=[], drain_s=10)
    assert status["state"] == "DONE", status
    assert status["steps"][0]["state"] == "LOADING"
    assert status["steps"][0]["seconds"] > 3
    assert subject.answered_by() == "2.0"
    assert ledger.slowest_s < 2


async def test_the_old_version_can_stay_and_an_old_one_come_back(new) -> None:
    subject = new()
    await subject.roll_out_under_load(url=subject.add("2.0"), canary=[], old_version="keep")
    assert subject.versions() == {"2.0": 1, "1.0": 1}
    status, _ = await subject.roll_out_under_load(version="1.0", canary=[100], step_s=0.5)
    assert status["state"] == "DONE", status
    assert subject.versions() == {"1.0": 1}


def test_the_command_follows_it_to_the_end(new) -> None:
    subject = new()
    words = ["--rollout", subject.name, "--management", subject.server.management]
    command = [sys.executable, "-m", "ts.model_server", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCE_PATHS)}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], env=environment, capture_output=True, text=True, timeout=40
        )

    done = run("--url", subject.add("2.0"), "--set", "canary=")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{subject.name} 1.0 -> 2.0: DONE"
    refused = run("--new-version", "7.0")
    assert refused.returncode == 3
    assert refused.stderr.startswith("404: Model version: 7.0 does not exist")


# Bad versions.


async def test_ray_66252_a_version_that_crashes_is_taken_back(new) -> None:
    subject = new()
    archive_name = subject.add("2.0", "behaves: crashes\n")
    status, ledger = await subject.roll_out_under_load(url=archive_name, **QUICK)
    assert status["state"] == "ROLLED_BACK", status
    assert "no worker of the new version is ready" in status["reason"]
    (step,) = canary_steps(status)
    assert step["seconds"] < 2  # from its first request, which kills it
    assert subject.versions() == {"1.0": 1}
    assert ledger.slowest_s < 3


async def test_a_version_that_fails_is_taken_back(new) -> None:
    subject = new()
    archive_name = subject.add("2.0", "behaves: fails\n")
    status, _ = await subject.roll_out_under_load(url=archive_name, **QUICK)
    assert status["state"] == "ROLLED_BACK", status
    assert "requests failed" in status["reason"]
    assert "Prediction failed" in status["reason"]
    (step,) = canary_steps(status)
    # 20 requests at a quarter of the rate, and the time from there to the rollback.
    assert step["seconds"] < 20 / (RATE_PER_S / 4) + 2
    assert status["movedRequests"] >= 20
    assert subject.versions() == {"1.0": 1}


async def test_a_version_that_hangs_is_taken_back(new) -> None:
    subject = new()
    archive_name = subject.add("2.0", "behaves: hangs\n")
    status, ledger = await subject.roll_out_under_load(
        url=archive_name, canary=[25], step_s=60, max_p99_ms=400, min_requests=5, drain_s=0.2
    )
    assert status["state"] == "ROLLED_BACK", status
    assert "max_p99_ms" in status["reason"]
    assert status["movedRequests"] >= 5
    assert status["steps"][-1]["seconds"] < 5  # its worker is not waited for
    assert ledger.slowest_s < 3


@pytest.mark.parametrize("behaves", ["crashes", "fails", "lies"])
def test_a_version_that_fails_its_self_test_gets_no_request(new, behaves: str, tmp_path) -> None:
    subject = new()
    expected = tmp_path / "expected.txt"
    expected.write_text("hello")
    config = f"behaves: {behaves}\nwarmup:\n- body: hello\n  answer: expected.txt\n"
    archive_name = subject.add("2.0", config, extra_files=str(expected))
    subject.start(url=archive_name, **QUICK)
    status = subject.wait(*ENDED)
    assert status["state"] == "ROLLED_BACK"
    assert [step["state"] for step in status["steps"]] == ["LOADING", "UNDOING"]
    assert subject.versions() == {"1.0": 1}
    assert subject.answered_by() == "1.0"
    registered = subject.server.register(archive_name, initial_workers=1)
    if behaves == "crashes":
        assert registered.status_code == 500, registered.text
    else:
        assert "self-test failed: warmup[0]: " in status["reason"]
        assert registered.status_code == 400, registered.text
        assert registered.json()["type"] == "InvalidModelException"
        assert registered.json()["message"] in f"Model {subject.name} version: 2.0: " + status[
            "reason"
        ].replace("it could not be loaded: ", "")
    assert subject.versions() == {"1.0": 1}


def test_a_self_test_is_passed_before_the_first_request(new) -> None:
    subject = new()
    config = "behaves: well\nwarmup:\n- body: '{\"a\": 1.0}'\n  repeat: 3\n  status: 200\n"
    assert subject.server.register(subject.add("2.0", config), initial_workers=2).status_code == 200
    assert subject.versions() == {"1.0": 1, "2.0": 2}


@pytest.mark.parametrize("kind", ["asyncCommunication", "continuousBatching"])
def test_workers_of_every_kind_test_themselves(server: RunningServer, tmp_path, kind: str) -> None:
    handler = MODELS / ("echo_async.py" if kind == "asyncCommunication" else "behaves.py")
    config = tmp_path / "model-config.yaml"
    for name, answer in (("good", "hello"), ("bad", "goodbye")):
        expected = tmp_path / "expected.txt"
        expected.write_text(answer)
        config.write_text(f"{kind}: true\nwarmup:\n- body: hello\n  answer: expected.txt\n")
        model = f"{name}_{kind}"
        more = {"config_file": str(config), "extra_files": str(expected)}
        archive(server.store, model, handler, **more)
        registered = server.register(f"{model}.mar", initial_workers=1)
        assert registered.status_code == (200 if name == "good" else 400), registered.text
    assert "another answer than expected: 'hello'" in registered.json()["message"]
    assert server.predict(f"good_{kind}", "x").text == "x"


def test_a_self_test_with_a_mistake_is_not_passed(new) -> None:
    subject = new()
    archive_name = subject.add("2.0", "warmup:\n- file: nowhere.txt\n")
    answer = subject.server.register(archive_name, initial_workers=1)
    assert answer.status_code == 400
    assert "there is no file nowhere.txt in the archive" in answer.json()["message"]


def test_an_archive_that_is_none_is_refused_at_once(new) -> None:
    subject = new()
    assert subject.post(url="nowhere.mar").status_code == 404
    assert subject.post(url=f"{subject.name}-1.0.mar").status_code == 409
    assert subject.post(version="9").status_code == 404
    assert subject.post(version="1.0").status_code == 400
    assert subject.post(version="2.0", canary=[50, 20]).status_code == 400
    nobody = subject.server.session.post(
        f"{subject.server.management}/models/nobody/rollout", json={"version": "2"}, timeout=20
    )
    assert nobody.status_code == 404
    assert subject.server.session.get(f"{subject.url}/rollout", timeout=20).status_code == 404
    assert subject.server.session.delete(f"{subject.url}/rollout", timeout=20).status_code == 404


# Copies, and what operators do.


async def test_copies_touch_no_answer_and_an_abort_ends_them(new) -> None:
    subject = new()
    async with subject.load():
        await asyncio.to_thread(
            subject.start, url=subject.add("2.0", "behaves: lies\n"), shadow=50, shadow_s=600
        )
        await asyncio.to_thread(
            wait_until,
            lambda: subject.status()["figures"]["newVersion"]["requests"] > 30,
            what="copies",
        )
        answers = {await asyncio.to_thread(subject.answered_by) for _ in range(10)}
        assert answers == {"1.0"}
        assert subject.post(version="2.0").status_code == 409
        aborted = await asyncio.to_thread(
            subject.server.session.delete, f"{subject.url}/rollout", timeout=20
        )
        assert aborted.status_code == 200, aborted.text
        status = await asyncio.to_thread(subject.wait, *ENDED)
    assert status["state"] == "ABORTED"
    assert status["reason"] == "aborted by an operator"
    assert status["figures"]["newVersion"]["failures"] == 0
    assert subject.versions() == {"1.0": 1}


@pytest.mark.parametrize(
    ("path", "method", "state", "reason", "versions"),
    [
        ("/2.0", "DELETE", "ABORTED", "was unregistered", {"1.0": 1}),
        ("/2.0/set-default", "PUT", "ABORTED", "default by hand", {"2.0": 1, "1.0": 1}),
        ("/2.0?min_worker=0", "PUT", "ROLLED_BACK", "no worker", {"1.0": 1}),
    ],
)
async def test_other_verbs_end_it(new, path, method, state, reason, versions) -> None:
    subject = new()
    async with subject.load():
        await asyncio.to_thread(subject.start, url=subject.add("2.0"), **FOR_EVER)
        await asyncio.to_thread(subject.wait, "CANARY")
        began_s = time.monotonic()
        answer = await asyncio.to_thread(
            subject.server.session.request, method, f"{subject.url}{path}", timeout=30
        )
        assert answer.status_code in (200, 202), answer.text
        status = await asyncio.to_thread(subject.wait, *ENDED)
        assert time.monotonic() - began_s < 3
    assert status["state"] == state, status
    assert reason in status["reason"]
    assert subject.versions() == versions


async def test_the_current_version_cannot_go_and_can_be_scaled(new) -> None:
    subject = new()
    async with subject.load():
        await asyncio.to_thread(subject.start, url=subject.add("2.0"), **FOR_EVER)
        await asyncio.to_thread(subject.wait, "CANARY")
        refused = await asyncio.to_thread(subject.server.session.delete, subject.url, timeout=30)
        assert refused.status_code == 403
        scaled = await asyncio.to_thread(
            subject.server.session.put,
            subject.url,
            params={"min_worker": 2, "synchronous": "true"},
            timeout=30,
        )
        assert scaled.status_code == 200, scaled.text
        assert subject.status()["state"] == "CANARY"
    metrics = subject.server.session.get(f"{subject.server.metrics}/metrics", timeout=20).text
    labels = f'{{model_name="{subject.name}",model_version="2.0"'
    assert f"ts_rollout_canary_percent{labels},}} 50.0" in metrics
    assert f'ts_rollout_requests_total{labels},result="answered",}}' in metrics
    subject.server.session.delete(f"{subject.url}/rollout", timeout=20)
    subject.wait("ABORTED")


def test_a_server_that_ends_in_the_middle_has_rolled_it_back(tmp_path: Path) -> None:
    store = tmp_path / "store"
    running = start_server(tmp_path / "server", store, has_snapshots=True)
    try:
        subject = Subject(running, tmp_path, "m")
        subject.start(url=subject.add("2.0"), **FOR_EVER)
        subject.wait("CANARY")
        assert running.stop() == 0, running.tail()
        running = start_server(tmp_path / "server", store, goes_on=True)
        running.wait_ready("m")
        subject.server = running
        assert subject.versions() == {"1.0": 1}
    finally:
        assert running.stop() == 0, running.tail()
