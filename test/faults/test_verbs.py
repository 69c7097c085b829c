"""Every verb of the management API at once, by many hands, over workers that are killed: whatever
the order, the server answers in words of its own, and knows what it has.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests
from serving import MODELS, RunningServer, archive, start_server, wait_until

SECONDS = int(os.environ.get("TS_FAULT_SECONDS", "0")) or 8
NAMES = ("m", "n")
VERSIONS = ("1.0", "2.0", "3.0")
PATIENCE_S = 60  # for one answer

Verb = Callable[["Hand"], requests.Response]


class Hand:
    """One operator; each name and number is drawn anew."""

    def __init__(self, server: RunningServer, seed: int) -> None:
        self.server = server
        self.chance = random.Random(seed)
        self.session = requests.Session()

    @property
    def name(self) -> str:
        return self.chance.choice(NAMES)

    @property
    def version(self) -> str:
        return self.chance.choice(VERSIONS)

    @property
    def count(self) -> int:
        return self.chance.choice((0, 1, 2))

    @property
    def is_synchronous(self) -> str:
        return self.chance.choice(("true", "false"))

    def ask(self, method: str, path: str, **more: object) -> requests.Response:
        url = f"{self.server.management}/models{path}"
        return self.session.request(method, url, timeout=PATIENCE_S, **more)

    def some_path(self) -> str:
        return f"/{self.name}" + self.chance.choice(("", f"/{self.version}"))


def register(hand: Hand) -> requests.Response:
    query = {
        "url": f"{hand.name}-{hand.version}.mar",
        "initial_workers": hand.count,
        "synchronous": hand.is_synchronous,
    }
    return hand.ask("POST", "", params=query)


def scale(hand: Hand) -> requests.Response:
    query = {"min_worker": hand.count, "max_worker": 2, "synchronous": hand.is_synchronous}
    return hand.ask("PUT", hand.some_path(), params=query)


def roll_out(hand: Hand) -> requests.Response:
    plan = {
        "version": hand.version,
        "canary": [50, 100],
        "step_s": 0.3,
        "min_requests": 1,
        "old_version": hand.chance.choice(("keep", "unregister")),
    }
    return hand.ask("POST", f"/{hand.name}/rollout", json=plan)


VERBS: tuple[Verb, ...] = (
    register,
    register,
    scale,
    scale,
    roll_out,
    lambda hand: hand.ask("DELETE", hand.some_path()),
    lambda hand: hand.ask("PUT", f"/{hand.name}/{hand.version}/set-default"),
    lambda hand: hand.ask("GET", hand.some_path()),
    lambda hand: hand.ask("GET", f"/{hand.name}/all"),
    lambda hand: hand.ask("GET", ""),
    lambda hand: hand.ask("DELETE", f"/{hand.name}/rollout"),
)


class Day:
    """What the hands and the clients of one day have met."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.is_over = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []

    def note(self, answer: requests.Response) -> None:
        self.statuses[answer.status_code] += 1
        if "Internal server error" in answer.text:
            self.wrong.append(f"{answer.request.method} {answer.request.url}: {answer.text}")

    def operate(self, seed: int) -> None:
        hand = Hand(self.server, seed)
        while not self.is_over.is_set():
            self.note(hand.chance.choice(VERBS)(hand))

    def kill(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.is_over.wait(0.3):
            workers = psutil.Process(self.server.process.pid).children()
            if workers:
                chance.choice(workers).kill()

    def use(self, seed: int) -> None:
        chance = random.Random(seed)
        with requests.Session() as session:
            while not self.is_over.wait(0.002):
                mark = str(chance.random())
                path = chance.choice(NAMES) + chance.choice(("", "/1.0", "/2.0"))
                url = f"{self.server.inference}/predictions/{path}"
                answer = session.post(url, data=mark, timeout=PATIENCE_S)
                self.note(answer)
                if answer.status_code == 200 and answer.text != mark:
                    self.wrong.append(f"{mark} was answered with {answer.text}")
                elif answer.status_code not in (200, 404, 500, 503, 507):
                    self.wrong.append(f"{answer.status_code} {answer.text}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    store = tmp_path_factory.mktemp("store")
    for name in NAMES:
        for version in VERSIONS:
            file_name = f"{name}-{version}"
            archive(store, name, MODELS / "ids.py", version=version, file_name=file_name)
    running = start_server(tmp_path_factory.mktemp("server"), store)
    yield running
    running.stop_and_leave_nothing()


@pytest.mark.timeout(SECONDS + 240)
def test_verbs_in_any_order_leave_nothing_in_disorder(server: RunningServer) -> None:
    process = psutil.Process(server.process.pid)
    before = process.num_fds()
    day = Day(server)
    with ThreadPoolExecutor(11) as hands:
        work = [hands.submit(day.operate, seed) for seed in range(6)]
        work += [hands.submit(day.use, seed) for seed in range(4)]
        work.append(hands.submit(day.kill, 0))
        began_s = time.monotonic()
        wait_until(
            lambda: time.monotonic() - began_s > SECONDS or any(one.done() for one in work),
            SECONDS + 5,
            "the end of the day",
        )
        day.is_over.set()
        for one in work:
            one.result()
    print(dict(day.statuses))
    assert day.wrong == []
    assert day.statuses[200] > 50
    for name in NAMES:
        wait_until(lambda name=name: is_taken_away(server, name), 60, f"the end of {name}")
    assert server.session.get(f"{server.management}/models", timeout=20).json() == {"models": []}
    wait_until(lambda: not process.children(), what="the end of all workers")
    wait_until(lambda: process.num_fds() <= before + 12, what="descriptors")
    left = {path.name for path in (server.folder / "tmp" / "models").iterdir()}
    assert left == set()
    assert "Traceback" not in server.log.read_text()


def is_taken_away(server: RunningServer, name: str) -> bool:
    """Unregister what there is of it, the default last; True when nothing is."""
    url = f"{server.management}/models/{name}"
    server.session.delete(f"{url}/rollout", timeout=20)
    every = server.session.get(f"{url}/all", timeout=20)
    if every.status_code == 404:
        return True
    for version in every.json():
        server.session.delete(f"{url}/{version['modelVersion']}", timeout=PATIENCE_S)
    return False
