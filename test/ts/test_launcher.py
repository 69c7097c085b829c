import queue
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ts import launcher


def process_that_prints(code):
    return subprocess.Popen(
        [sys.executable, "-uc", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def test_watch_returns_when_the_server_serves_and_keeps_the_lines(capsys):
    process = process_that_prints(
        "import sys\nprint('one')\nprint('INFO Model server started.')\n"
        "print('two', file=sys.stderr)"
    )
    lines = launcher.watch(process)
    seen = list(iter(lambda: lines.get(timeout=30), None))
    assert seen == ["one", "INFO Model server started.", "two"]
    assert "one\nINFO Model server started.\n" in capsys.readouterr().out
    assert process.returncode == 0


def test_a_server_that_ends_first_is_an_error_with_its_last_words():
    process = process_that_prints("print('no model store')")
    with pytest.raises(RuntimeError, match="no model store"):
        launcher.watch(process)


def test_who_does_not_read_loses_the_oldest_lines(monkeypatch):
    monkeypatch.setattr(launcher, "MAX_LINES", 3)
    process = process_that_prints("print('Model server started')\nfor k in range(9): print(k)")
    lines = launcher.watch(process)
    process.wait()
    wait_for_threads()
    seen = []
    while True:
        try:
            seen.append(lines.get_nowait())
        except queue.Empty:
            break
    assert seen == ["7", "8", None]


def wait_for_threads():
    for thread in threading.enumerate():
        if isinstance(thread, (launcher.Tee, launcher.PrintTillTheEnd)):
            thread.join(30)


@pytest.fixture
def commands(monkeypatch):
    """The command lines that would have been run."""
    run = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: run.append(command[3:]))
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: run.append(command[3:]))
    monkeypatch.setattr(launcher, "watch", lambda process: "lines")
    return run


def test_start_stops_a_running_server_first(commands):
    assert launcher.start() == "lines"
    assert commands == [["--stop", "--foreground"], ["--start"]]


def test_all_parameters_of_start(commands):
    launcher.start("store", "file.cfg", True, "plugins", True, "a=b.mar", True)
    assert commands[1] == [
        "--start",
        *("--model-store", "store", "--ts-config", "file.cfg", "--plugins-path", "plugins"),
        *("--models", "a=b.mar"),
        *("--no-config-snapshots", "--disable-token-auth", "--enable-model-api"),
    ]


def test_stop_without_waiting(commands):
    launcher.stop(wait=False)
    assert commands == [["--stop"]]


@pytest.fixture
def management_api(monkeypatch):
    """A management API that answers 200, or 409 for the model "taken"; yields the paths it saw."""
    paths = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            paths.append(self.path)
            self.send_response(409 if "taken" in self.path else 200)
            self.end_headers()
            self.wfile.write(b'{"status": "done"}')

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(
            launcher, "MODELS_URL", f"http://127.0.0.1:{server.server_address[1]}/models"
        )
        yield paths
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("has_requests", [True, False])
def test_register(management_api, monkeypatch, has_requests):
    if not has_requests:
        monkeypatch.setitem(sys.modules, "requests", None)
    response = launcher.register_model("m", "https://h/m.mar")
    assert (response.status_code, response.json(), response.ok) == (200, {"status": "done"}, True)
    assert management_api == [
        "/models?model_name=m&url=https%3A%2F%2Fh%2Fm.mar&initial_workers=1&synchronous=true"
    ]
    refused = launcher.register_model_with_params({"model_name": "taken", "url": "x"})
    assert (refused.status_code, refused.ok) == (409, False)
    assert refused.text == '{"status": "done"}'
