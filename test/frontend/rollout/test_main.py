"""The command, against a server of three answers."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ts_frontend.rollout import __main__ as command

FIGURES = {"requests": 40, "failures": 1, "p50Ms": 2.0, "p99Ms": 7.5}


def status(state: str, percent: float = 0, **more: object) -> dict[str, Any]:
    return {
        "modelName": "m",
        "currentVersion": "1.0",
        "newVersion": "2.0",
        "state": state,
        "percent": percent,
        "steps": [],
        "figures": {"newVersion": FIGURES, "currentVersion": FIGURES},
        **more,
    }


class Played(http.server.ThreadingHTTPServer):
    """asked: method, path, key and body of each request. answers: the next ones."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, str | None, str]] = []
        self.answers: list[tuple[int, object]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Played

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        key = self.headers.get("authorization")
        self.server.asked.append((self.command, self.path, key, body.decode()))
        code, answer = self.server.answers.pop(0)
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    monkeypatch.setattr(command, "LOOK_INTERVAL_S", 0.001)
    with Played() as played:
        thread = threading.Thread(target=played.serve_forever, args=(0.01,))
        thread.start()
        yield played
        played.shutdown()
        thread.join()


def run(server: Played, *words: str) -> int:
    return command.main(["--rollout", "m/x", "--management", server.address, *words])


def test_it_starts_and_follows_to_the_end(server: Played, capsys) -> None:
    canary = status("CANARY", 25)
    server.answers += [
        (202, status("LOADING")),
        (200, [canary]),
        (200, [canary]),
        (200, [status("DONE", steps=[1])]),
    ]
    assert run(server, "--url", "m2.mar", "--set", "canary=25", "--set", "step_s=3") == command.OK
    method, path, key, body = server.asked[0]
    assert (method, path, key) == ("POST", "/models/m%2Fx/rollout", None)
    assert json.loads(body) == {"url": "m2.mar", "canary": "25", "step_s": "3"}
    assert capsys.readouterr().out.splitlines() == [
        "m 1.0 -> 2.0: LOADING",
        "m 1.0 -> 2.0: CANARY 25 %; new: 40 requests, 1 failed, p99 7.5 ms; "
        "current: 40 requests, 1 failed, p99 7.5 ms",
        "m 1.0 -> 2.0: DONE",
    ]


def test_a_rollback_is_a_failure(server: Played, capsys) -> None:
    server.answers += [(202, status("ROLLED_BACK", reason="it failed"))]
    assert run(server, "--new-version", "2.0") == command.UNDONE
    assert capsys.readouterr().out == "m 1.0 -> 2.0: ROLLED_BACK (it failed)\n"


def test_a_refusal_is_told(server: Played, capsys) -> None:
    server.answers += [(409, {"code": 409, "message": "A rollout of model m is under way."})]
    assert run(server, "--new-version", "2.0") == command.REFUSED
    assert capsys.readouterr().err == "409: A rollout of model m is under way.\n"


def test_an_abort_and_a_look(server: Played, capsys, tmp_path: Path) -> None:
    keys = tmp_path / "key_file.json"
    keys.write_text(json.dumps({"management": {"key": "secret"}}))
    server.answers += [(200, status("UNDOING")), (200, [status("ABORTED")])]
    assert run(server, "--abort", "--key-file", str(keys)) == command.OK
    assert server.asked[0][:3] == ("DELETE", "/models/m%2Fx/rollout", "Bearer secret")
    server.answers += [(200, [status("ABORTED")])]
    assert run(server) == command.OK
    assert '"state": "ABORTED"' in capsys.readouterr().out


def test_nobody_is_there(capsys) -> None:
    assert command.main(["--rollout", "m", "--management", "http://127.0.0.1:1"]) == command.REFUSED
    assert "127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--url", "a", "--new-version", "2"], ["--set", "canary"], ["--nonsense"]]
)
def test_wrong_usage(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--rollout", "m", *words])
    assert ended.value.code == command.USAGE
