"""Workers that may not do everything, and how each of their ends is told."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from serving import MODELS, RunningServer, archive, start_server, wait_until

from ts.containment import NotContainedError

SECRET = "hunter2"


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_server(
        tmp_path_factory.mktemp("containment"),
        store,
        blacklist_env_vars="MY_.*",
        variables={"MY_PASSWORD": SECRET, "OTHER": "seen"},
    )
    yield running
    running.stop_and_leave_nothing()


def add(
    server: RunningServer,
    name: str,
    config: str = "",
    at_load: str = "",
    handler: Path = MODELS / "confined.py",
    **parameters: object,
) -> requests.Response:
    """Register a model with these lines of configuration and one worker."""
    folder = server.folder / name
    folder.mkdir()
    (folder / "model-config.yaml").write_text(config + "\nmaxRetryTimeoutInSec: 60\n")
    more: dict[str, Any] = {"config_file": str(folder / "model-config.yaml")}
    if at_load:
        (folder / "at_load").write_text(at_load)
        more["extra_files"] = str(folder / "at_load")
    archive(server.store, name, handler, **more)
    return server.register(f"{name}.mar", **{"initial_workers": 1, **parameters})


def ask(server: RunningServer, name: str, text: str) -> Any:
    answer = server.predict(name, text.encode())
    assert answer.status_code == 200, answer.text
    return answer.json()


def failure(server: RunningServer, name: str) -> dict[str, Any]:
    """Of the model's only worker, once it has one."""

    def find() -> dict[str, Any] | None:
        return server.describe(name)["workers"][0].get("lastFailure")

    wait_until(find, what=f"a failure of {name}")
    found = find()
    assert found
    return found


def deaths(server: RunningServer, name: str) -> dict[str, float]:
    """By cause."""
    text = server.session.get(f"{server.metrics}/metrics", timeout=20).text
    pattern = rf'^ts_worker_restarts_total{{model_name="{name}",.*cause="(.*?)",}} (\S+)$'
    return {cause: float(value) for cause, value in re.findall(pattern, text, re.MULTILINE)}


def readiness(server: RunningServer, model: str = "") -> tuple[int, dict[str, str]]:
    """The status, and the reason of each model that is not ready. model: only this one."""
    path = f"/health/ready/{model}".rstrip("/")
    answer = server.session.get(f"{server.inference}{path}", timeout=20)
    return answer.status_code, {
        item["modelName"]: item["reason"] for item in answer.json().get("models", [])
    }


# Four ends: name -> what happens, what the API says, the label of the metric, is it tried again?
DEATHS_AT_LOAD = {
    "segfault": ("segfault", "", {"cause": "segfault", "signal": 11}, "ended by signal 11"),
    "memory": (
        "allocate 4000",
        "maxAddressSpaceInMB: 2000",
        {"cause": "out_of_memory"},
        "out_of_memory",
    ),
    "system_exit": ("exit 3", "", {"cause": "exit", "exitCode": 3}, "exit code 3"),
}


@pytest.mark.parametrize("name", DEATHS_AT_LOAD)
def test_what_ends_a_loading_worker_is_told_apart(server: RunningServer, name: str) -> None:
    at_load, config, expected, label = DEATHS_AT_LOAD[name]
    model = f"dies_{name}"
    assert add(server, model, config, at_load, synchronous="false").status_code == 202
    found = failure(server, model)
    assert found | expected == found
    if name == "segfault":  # and where in the handler
        said = "\n".join(found["lastLines"])
        assert "Fatal Python error: Segmentation fault" in said
        assert "confined.py" in said
    assert "isLasting" not in found
    wait_until(lambda: label in deaths(server, model), what=f"{label}: {deaths(server, model)}")
    wait_until(lambda: server.describe(model)["workers"][0].get("restarts"), what="another try")
    assert model in readiness(server)[1]
    unregister(server, model)


def unregister(server: RunningServer, model: str) -> None:
    answer = server.session.delete(f"{server.management}/models/{model}", timeout=60)
    assert answer.status_code == 200, answer.text


LASTING = {
    "import_error": ("import not_installed_here\n", "import_error", "not_installed_here"),
    "syntax_error": ("def handle(data, context:\n", "syntax_error", "SyntaxError"),
    "bad_handler": ("x = 1\n", "bad_handler", "Expected only one class"),
    "missing_file": (
        "def handle(data, context):\n    open('/no/weights.pt')\n",
        "missing_file",
        "/no/weights.pt",
    ),
}


@pytest.mark.parametrize("name", LASTING)
def test_serve_2452_what_would_fail_again_is_not_tried_for_ever(
    server: RunningServer, name: str, tmp_path: Path
) -> None:
    source, cause, word = LASTING[name]
    model = f"lasting_{name}"
    handler = tmp_path / f"handler_{name}.py"
    handler.write_text(source)
    assert add(server, model, handler=handler, synchronous="false").status_code == 202
    wait_until(lambda: server.describe(model).get("unhealthyReason"), what="no more retries")
    described = server.describe(model)
    assert word in described["unhealthyReason"]
    assert described["workers"][0]["lastFailure"]["cause"] == cause
    failed = described["workers"][0]["lastFailure"]
    assert failed["isLasting"] is True
    assert word in "\n".join(failed["lastLines"])
    assert len(failed["lastLines"]) <= 10
    assert deaths(server, model) == {cause: 2.0}
    assert word in readiness(server)[1][model]
    refused = server.predict(model, b"x")
    assert refused.status_code == 503
    assert refused.headers["x-error-reason"] == f"worker_{cause}"
    # Scaling is the way to try again.
    answer = server.session.put(
        f"{server.management}/models/{model}",
        params={"min_worker": 1, "synchronous": "true"},
        timeout=60,
    )
    assert answer.status_code == 500
    assert deaths(server, model) == {cause: 3.0}
    unregister(server, model)


def test_ready_means_that_a_worker_answers_now(server: RunningServer) -> None:
    """A stopped process still has its socket, and was READY a moment ago."""
    assert add(server, "halted").status_code == 200
    assert readiness(server, "halted") == (200, {})
    assert readiness(server, "halted/1.0") == (200, {})
    pid = server.worker_pids("halted")[0]
    os.kill(pid, signal.SIGSTOP)
    status, reasons = readiness(server, "halted")
    assert (status, reasons) == (503, {"halted": "none of its workers answers within 2 s"})
    assert readiness(server)[1] == reasons
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: readiness(server, "halted") == (200, {}), what="ready again")
    assert readiness(server, "nobody")[0] == 404
    unregister(server, "halted")


def test_serve_3047_ready_when_each_model_serves_and_live_all_the_time(
    server: RunningServer,
) -> None:
    assert add(server, "ready").status_code == 200
    assert readiness(server) == (200, {})
    pid = server.worker_pids("ready")[0]
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: readiness(server)[0] == 503, what="not ready while the worker is gone")
    live = server.session.get(f"{server.inference}/health/live", timeout=20)
    assert (live.status_code, live.json()) == (200, {"status": "Live"})
    wait_until(lambda: readiness(server)[0] == 200, what="ready again")
    assert failure(server, "ready")["cause"] == "out_of_memory"  # what a SIGKILL looks like


def test_a_segfault_while_serving_is_told(server: RunningServer) -> None:
    assert add(server, "crashes", "workerDeathRetries: 0").status_code == 200
    assert server.predict("crashes", b"segfault").status_code == 500
    found = failure(server, "crashes")
    assert (found["cause"], found["signal"]) == ("segfault", 11)
    server.wait_ready("crashes")


# Limits.


def test_processor_time_runs_out(server: RunningServer) -> None:
    assert add(server, "burns", "maxCpuTimeInSec: 4\nworkerDeathRetries: 0").status_code == 200
    assert server.predict("burns", b"burn").status_code == 500
    assert failure(server, "burns")["cause"] == "cpu_time"


def test_memory_files_and_descriptors_have_bounds(server: RunningServer) -> None:
    config = "maxAddressSpaceInMB: 3000\nmaxFileSizeInMB: 1\nmaxOpenFiles: 77"
    assert add(server, "bounded", config).status_code == 200
    assert ask(server, "bounded", "facts")["open_files"] == [77, 77]
    assert server.predict("bounded", b"allocate 4000").status_code >= 500
    assert server.predict("bounded", b"write 2").status_code >= 500
    assert ask(server, "bounded", "echo still here") == "still here"


def test_a_temporary_folder_of_its_own_is_gone_with_the_worker(server: RunningServer) -> None:
    config = "ownTempFolder: true\nminWorkers: 2\nmaxWorkers: 2"
    assert add(server, "tidy", config).status_code == 200
    with ThreadPoolExecutor(2) as clients:
        both = list(clients.map(lambda _: ask(server, "tidy", "meet 2"), range(2)))
    folders = [facts["temp"] for facts in both]
    assert len(set(folders)) == 2
    assert ask(server, "tidy", "write 1") == 1 << 20
    unregister(server, "tidy")
    assert [folder for folder in folders if os.path.exists(folder)] == []


def test_no_network_but_itself(server: RunningServer) -> None:
    answer = add(server, "offline", "network: none\nnoNewPrivileges: true")
    if answer.status_code == 500 and NotContainedError.__name__ in server.log.read_text():
        pytest.skip("this system lets nobody make a network namespace")
    assert answer.status_code == 200, answer.text
    with socket.create_server(("127.0.0.1", 0)) as outside:
        address = f"127.0.0.1:{outside.getsockname()[1]}"
        assert ask(server, "offline", f"connect {address}") == "ConnectionRefusedError"
        assert add(server, "online").status_code == 200
        assert ask(server, "online", f"connect {address}") == "connected"
    assert ask(server, "offline", "loopback") == "connected"
    facts = ask(server, "offline", "facts")
    assert facts["no_new_privileges"] == "1"
    assert facts["user"] == os.geteuid()
    assert facts["pid"] == server.worker_pids("offline")[0]


def test_workers_do_not_see_what_is_hidden(server: RunningServer) -> None:
    assert add(server, "curious").status_code == 200
    assert ask(server, "curious", "variable MY_PASSWORD") is None
    assert ask(server, "curious", "variable OTHER") == "seen"
    pid = server.worker_pids("curious")[0]
    assert SECRET not in Path(f"/proc/{pid}/environ").read_text()


def test_serve_2099_a_server_whose_models_did_not_load_is_not_ready(tmp_path: Path) -> None:
    store = tmp_path / "store"
    good = archive(store, "good", MODELS / "confined.py")
    (store / "cut.mar").write_bytes(good.read_bytes()[:200])
    server = start_server(tmp_path / "server", store, load_models="good.mar,cut.mar")
    try:
        server.wait_ready("good")
        status, reasons = readiness(server)
        assert status == 503
        assert list(reasons) == ["cut.mar"]
    finally:
        server.stop()
