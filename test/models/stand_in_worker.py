"""A worker without torch: starts in milliseconds and misbehaves on demand.

How it starts is the next line of the file `starts` in the model's folder ("normal" when there is
none left); how it answers is each request's body (an echo if the body is no word of `ANSWERS`).
Every start adds its process id to the file `pids`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ts.protocol.messages import (
    CommandReader,
    LoadModel,
    Prediction,
    PredictRequest,
    encode_load_reply,
)

# The script runs through a link, beside nothing of the tests.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from reply_codec import encode_predict_reply

SUCCESS = "Prediction success"


def next_start() -> str:
    with open("pids", "a") as pids:
        pids.write(f"{os.getpid()}\n")
    plan = Path("starts")
    words = plan.read_text().split() if plan.exists() else []
    if words:
        plan.write_text("\n".join(words[1:]))
    return words[0] if words else "normal"


def listen(arguments: list[str]) -> socket.socket:
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    if options["--sock-type"] == "unix":
        door = socket.socket(socket.AF_UNIX)
        address: Any = options["--sock-name"]
        Path(address).unlink(missing_ok=True)
    else:
        door = socket.socket()
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        address = ("127.0.0.1", int(options["--port"]))
    door.bind(address)
    door.listen(1)
    return door


def say(line: str, file: Any = sys.stdout) -> None:
    print(line, file=file, flush=True)


def say_started() -> None:
    say(f"[PID]{os.getpid()}")
    say("Torch worker started.")


def end(how: str) -> None:
    if how.startswith("dies"):
        say("the stand-in had to die", sys.stderr)
        os._exit(3)
    if how.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if how.startswith("hangs"):
        wait_for_ever()


def wait_for_ever() -> None:
    while True:
        signal.pause()


def start(arguments: list[str]) -> None:
    how = next_start()
    if how in ("dies", "killed", "hangs"):
        end(how)
    if how == "never-listens":
        say_started()
        wait_for_ever()
    if how == "listens-late":
        say_started()
        time.sleep(0.15)
        door = listen(arguments)
    else:
        door = listen(arguments)
        say_started()
    connection, _ = door.accept()
    Worker(connection, how).serve()


class Worker:
    def __init__(self, connection: socket.socket, how: str) -> None:
        self.connection = connection
        self.how = how
        self.reader = CommandReader()
        self.ignores_end = how == "ignores-end"

    def serve(self) -> None:
        while data := self.connection.recv(65536):
            self.reader.feed(data)
            while (command := self.reader.next()) is not None:
                if isinstance(command, LoadModel):
                    self.load(command)
                else:
                    self.predict(command)
        if self.ignores_end:
            wait_for_ever()
        say("Frontend disconnected.")

    def load(self, model: LoadModel) -> None:
        end(self.how.removesuffix("-loading"))
        self.model = model
        code, message = 200, f"loaded model {model.model_name}"
        if self.how.startswith("refuses-"):
            code, message = int(self.how.removeprefix("refuses-")), "the stand-in refuses"
        self.connection.sendall(encode_load_reply(code, message))
        if code != 200:
            sys.exit(1)

    def predict(self, batch: list[PredictRequest]) -> None:
        answers = [self.answer(bytes(request.parts[0].body)) for request in batch]
        self.reply(batch, answers)

    def reply(self, batch: list[PredictRequest], answers: list[bytes]) -> None:
        predictions = [
            Prediction(bytes(request.id), b"", 200, b"", [], body)
            for request, body in zip(batch, answers, strict=True)
        ]
        self.connection.sendall(b"".join(encode_predict_reply(200, SUCCESS, predictions)))

    def answer(self, body: bytes) -> bytes:
        word, _, rest = body.decode("utf-8", "replace").partition(" ")
        action = ANSWERS.get(word)
        return body if action is None else (action(self, rest) or b"done")


def hold(worker: Worker, rest: str) -> None:
    """Until the file `release` appears; `held` says that it waits."""
    Path("held").touch()
    while not Path("release").exists():
        time.sleep(0.002)


def print_line(worker: Worker, rest: str) -> None:
    say(rest)


def print_error(worker: Worker, rest: str) -> None:
    say(rest, sys.stderr)


def print_much(worker: Worker, rest: str) -> None:
    """So many bytes and no end of line."""
    sys.stdout.write("x" * int(rest))
    sys.stdout.flush()


def describe(worker: Worker, rest: str) -> bytes:
    facts = {
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "environ": dict(os.environ),
        "load": worker.model._asdict(),
    }
    return json.dumps(facts).encode()


def fork(worker: Worker, rest: str) -> bytes:
    """A child that holds our output open; with "away" it has left our session too."""
    code = "import signal; signal.pause()"
    child = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", code], start_new_session=rest == "away"
    )
    return str(child.pid).encode()


def ignore_end(worker: Worker, rest: str) -> None:
    worker.ignores_end = True


ANSWERS: dict[str, Callable[[Worker, str], bytes | None]] = {
    "die": lambda worker, rest: end("dies"),  # type: ignore[func-returns-value]
    "kill": lambda worker, rest: end("killed"),  # type: ignore[func-returns-value]
    "hang": lambda worker, rest: end("hangs"),  # type: ignore[func-returns-value]
    "disconnect": lambda worker, rest: worker.connection.shutdown(socket.SHUT_RDWR),
    "oversize": lambda worker, rest: bytes(int(rest)),
    "hold": hold,
    "print": print_line,
    "print-error": print_error,
    "print-much": print_much,
    "describe": describe,
    "fork": fork,
    "ignore-end": ignore_end,
}


if __name__ == "__main__":
    start(sys.argv[1:])
