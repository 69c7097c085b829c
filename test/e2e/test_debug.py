"""`debug=true`: workers are started by hand, one for each model, and nobody hurries them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

from serving import MODELS, RunningServer, archive, start_server, wait_until


def printed_starts(server: RunningServer) -> list[str]:
    return re.findall(r"Start this worker by hand: (.*)", server.log.read_text())


def start_by_hand(line: str, output: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with output.open("ab") as file:
        return subprocess.Popen(
            ["bash", "-c", f"exec env {line.partition(' && ')[2]}"],
            cwd=line.partition(" && ")[0].removeprefix("cd "),
            env=environment,
            stdout=file,
            stderr=file,
        )


def test_workers_are_started_by_hand_and_without_haste(store: Path, tmp_path: Path) -> None:
    archive(store, "sleeps", MODELS / "sleeps.py")
    server = start_server(
        tmp_path / "server",
        store,
        debug="true",
        load_models="sleeps.mar",
        default_workers_per_model=3,
        default_response_timeout=1,
        default_startup_timeout=1,
    )
    hands: list[subprocess.Popen[bytes]] = []
    try:
        wait_until(lambda: printed_starts(server), what="the command for the worker")
        (line,) = printed_starts(server)
        assert server.describe("sleeps")["minWorkers"] == 1
        assert server.describe("sleeps")["workers"][0]["status"] == "UNLOADING"
        hands.append(start_by_hand(line, tmp_path / "worker"))
        server.wait_ready("sleeps")
        # Longer than responseTimeout: somebody may be stepping through the handler.
        assert server.predict("sleeps", b"1.5").status_code == 200
        hands[0].send_signal(signal.SIGKILL)
        hands[0].wait(20)
        wait_until(lambda: len(printed_starts(server)) == 2, what="the command once more")
        hands.append(start_by_hand(printed_starts(server)[-1], tmp_path / "worker"))
        server.wait_ready("sleeps")
        assert server.predict("sleeps", b"0").status_code == 200
        assert server.stop() == 0
        assert hands[-1].wait(20) == 0  # it ends with its connection
    finally:
        for hand in hands:
            hand.kill()
            hand.wait()
        server.stop()


def test_a_server_whose_workers_nobody_starts_can_be_stopped(store: Path, tmp_path: Path) -> None:
    archive(store, "echo", MODELS / "echo.py")
    server = start_server(tmp_path / "server", store, debug="true", load_models="echo.mar")
    wait_until(lambda: printed_starts(server), what="the command for the worker")
    server.stop_and_leave_nothing()
