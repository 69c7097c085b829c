"""Operators who change one model at the same time: each is answered, and nothing is left over."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from serving import MODELS, RunningServer, archive, children_of, start_server, wait_until

VERSIONS = ("1.0", "2.0", "3.0")
OPERATORS = 6
CHANGES = 60  # of each
# An operator whose version another one takes away meanwhile.
TAKEN_AWAY = "stopped, by a scale or an unregister, before it had loaded the model"


class Operator:
    def __init__(self, server: RunningServer, seed: int) -> None:
        self._server = server
        self._chance = random.Random(seed)
        self._session = requests.Session()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.odd: list[str] = []

    def work(self) -> None:
        with self._session:
            for _ in range(CHANGES):
                self._change()

    def _change(self) -> None:
        chance, models = self._chance, f"{self._server.management}/models"
        version = chance.choice(VERSIONS)
        is_synchronous = chance.choice(("true", "false"))
        register = f"?url=echo-{version}.mar&initial_workers={chance.randrange(3)}"
        scale = f"/echo/{version}?min_worker={chance.randrange(3)}&max_worker=2"
        verb, url = chance.choice(
            (
                ("POST", f"{models}{register}&synchronous={is_synchronous}"),
                ("PUT", f"{models}{scale}&synchronous={is_synchronous}"),
                ("PUT", f"{models}/echo/{version}/set-default"),
                ("DELETE", f"{models}/echo/{version}"),
                ("GET", f"{models}/echo/all"),
                ("ASK", f"{self._server.inference}/predictions/echo/{version}"),
            )
        )
        method = "POST" if verb == "ASK" else verb
        answer = self._session.request(method, url, data=b"x", timeout=60)
        self.answers[verb, answer.status_code] += 1
        accepted = {200, 202, 206, 403, 404, 409} | ({503} if verb == "ASK" else set())
        was_taken_away = answer.status_code == 500 and TAKEN_AWAY in answer.text
        if answer.status_code not in accepted and not was_taken_away:
            self.odd.append(f"{verb} {url}: {answer.status_code} {answer.text}")


@pytest.mark.slow
@pytest.mark.parametrize("worker_start", ["spawn", "fork"])
def test_changes_of_one_model_that_come_together(
    store: Path, tmp_path: Path, worker_start: str
) -> None:
    for version in VERSIONS:
        archive(store, "echo", MODELS / "echo.py", version=version, file_name=f"echo-{version}")
    server = start_server(
        tmp_path / "server", store, has_snapshots=True, worker_start=worker_start, worker_preload=""
    )
    try:
        operators = [Operator(server, seed) for seed in range(OPERATORS)]
        with ThreadPoolExecutor(OPERATORS) as pool:
            list(pool.map(Operator.work, operators))
        assert [odd for operator in operators for odd in operator.odd] == []
        answers = sum((operator.answers for operator in operators), Counter[tuple[str, int]]())
        assert answers["POST", 200] + answers["POST", 202] > 3  # something was registered,
        assert answers["DELETE", 200] > 3  # and unregistered

        models = f"{server.management}/models"
        for _ in VERSIONS:  # the default goes last, whichever it is
            for version in VERSIONS:
                server.session.delete(f"{models}/echo/{version}", timeout=60)
        assert server.session.get(models, timeout=20).json() == {"models": []}
        wait_until(lambda: not workers_of(server), what="the end of all workers")
        temp = server.folder / "tmp"
        assert list((temp / "models").iterdir()) == []
        assert list(temp.glob("ts-*/.ts.sock.9*")) == []
        assert server.register("echo-1.0.mar", initial_workers=2).status_code == 200
        assert server.predict("echo", b"x").content == b"x"
    finally:
        server.stop_and_leave_nothing()
    assert "Traceback" not in server.log.read_text()


def workers_of(server: RunningServer) -> list[int]:
    found = []
    for child in children_of(server.process.pid):
        with contextlib.suppress(psutil.Error):  # it ends while we look
            if "model_service_worker" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found
