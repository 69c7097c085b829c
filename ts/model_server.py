"""The `torchserve` command: starts and stops the server process.

The server (`python -m ts_frontend`) runs in a session of its own and outlives the command. While it
starts, the command reads how far it has come from a pipe (`--ready-fd`; the lines are described in
`ts_frontend.start_report`) and ends when the server is ready, or says why it is not. The server
keeps writing its log to the command's stdout, for scripts that wait for `Model server started.`

Standard library only, and quick to import: this is what a person waits for.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from ts.arg_parser import ArgParser
from ts.version import __version__

PID_FILE_NAME = ".model_server.pid"
STOP_TIMEOUT_S = 60.0
PROGRESS_INTERVAL_S = 10.0
SERVER_MODULE = "ts_frontend"
# Commands of their own with flags of their own, so that ours keep their abbreviations.
COMMANDS = {"--try": "ts_frontend.try_model", "--rollout": "ts_frontend.rollout"}

_ALREADY_RUNNING = "TorchServe is already running, please use torchserve --stop to stop TorchServe."


class CannotStart(Exception):
    """`str(error)` is for the person at the terminal."""


def start() -> None:
    """Run the command with the arguments of this process; exit status 1 if it failed."""
    for word in sys.argv[1:]:
        if module := COMMANDS.get(word.partition("=")[0]):
            command = module_command(module)
            os.execv(command[0], [*command, *sys.argv[1:]])  # noqa: S606  (our own command)
    arguments = ArgParser.extract_args()
    if arguments.version:
        print(f"TorchServe Version is {__version__}")
        return
    command = ServerCommand(arguments, os.environ, os.getcwd())
    if arguments.check_config:
        words = command.check_command()
        os.execv(words[0], words)  # noqa: S606  (our own command)
    status = command.stop() if arguments.stop else command.start()
    if status:
        sys.exit(status)


def server_command() -> list[str]:
    return module_command(SERVER_MODULE)


def module_command(module: str) -> list[str]:
    # -P: modules in the folder where the command is typed must not shadow the server's own.
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    return [sys.executable, *safe_path, "-m", module]


class ServerCommand:
    """One run of the command. `start` and `stop` return the exit status and print what happened.

    server:   the start of the server's command line.
    pid_file: where the number of the running server is kept.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        environ: Mapping[str, str],
        cwd: str,
        *,
        server: Sequence[str] | None = None,
        pid_file: str | None = None,
        progress_interval_s: float = PROGRESS_INTERVAL_S,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self._arguments = arguments
        self._environ = environ
        self._cwd = cwd
        self._server = list(server) if server else server_command()
        self._pid_file = pid_file or os.path.join(tempfile.gettempdir(), PID_FILE_NAME)
        self._progress_interval_s = progress_interval_s
        self._stop_timeout_s = stop_timeout_s
        self.process: subprocess.Popen[bytes] | None = None
        self._caught_signal: int | None = None

    # Stop.

    def stop(self) -> int:
        pid = read_pid(self._pid_file)
        if pid is None:
            _say("TorchServe is not currently running.")
            return 0
        if not is_server(pid):
            _say("TorchServe already stopped.")
            _remove(self._pid_file)
            return 0
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            _say("TorchServe already stopped.")
            _remove(self._pid_file)
            return 0
        except PermissionError:
            _say(f"TorchServe (pid {pid}) belongs to another user and was not stopped.")
            return 1
        # The keys in it are void once the server has ended.
        _remove(os.path.join(self._cwd, "key_file.json"))
        if self._arguments.foreground:
            if not wait_for_end(pid, self._stop_timeout_s):
                _say("Stopping TorchServe took too long.")
                return 1
        else:
            _say("TorchServe has stopped.")
        _remove(self._pid_file)
        return 0

    # Start.

    def start(self) -> int:
        pid = read_pid(self._pid_file)
        if pid is not None:
            if is_server(pid):
                _say(_ALREADY_RUNNING)
                return 1
            _say("Removing orphan pid file.")
        _remove(self._pid_file)
        try:
            self._check()
        except CannotStart as error:
            _say(str(error))
            return 1
        return self._run()

    def _run(self) -> int:
        handlers = self._forward_signals()
        try:
            read_end, write_end = os.pipe()
            try:
                process = self._spawn(write_end)
            finally:
                os.close(write_end)
            with open(read_end, "rb", buffering=0) as pipe:
                status = self._wait_until_ready(process, pipe.fileno())
            if status == 0 and self._arguments.foreground:
                status = self._wait_in_foreground(process)
            return status
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _spawn(self, write_end: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603  (our own command, no shell)
            [*self._server, *self._server_arguments(), "--ready-fd", str(write_end)],
            stdin=subprocess.DEVNULL,
            cwd=self._cwd,
            env=dict(self._environ),
            pass_fds=[write_end],
            start_new_session=True,
        )
        self.process = process
        if self._caught_signal is not None:
            process.terminate()
        write_pid(self._pid_file, process.pid)
        return process

    def check_command(self) -> list[str]:
        return [*self._server, *self._server_arguments(), "--check-config"]

    def _server_arguments(self) -> list[str]:
        given = self._arguments
        values = []
        for flag, value in (
            ("--ts-config", given.ts_config),
            ("--model-store", given.model_store),
            ("--workflow-store", given.workflow_store),
            ("--log-config", given.log_config),
            ("--cpp-log-config", given.cpp_log_config),
            ("--plugins-path", given.plugins_path),
        ):
            if value:
                values.append(f"{flag}={value}")  # one word, so that a value may begin with a dash
        if given.models:
            values += ["--models", *given.models]
        for flag, is_given in (
            ("--no-config-snapshots", given.no_config_snapshots),
            ("--disable-token-auth", given.disable_token_auth),
            ("--enable-model-api", given.enable_model_api),
        ):
            if is_given:
                values.append(flag)
        return values

    def _forward_signals(self) -> dict[int, Any]:
        """The server has its own session, so a Ctrl-C at the terminal reaches only this process."""

        def forward(number: int, _frame: FrameType | None) -> None:
            self._caught_signal = number
            if self.process is not None and self.process.poll() is None:
                self.process.terminate()

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        return {number: signal.signal(number, forward) for number in numbers}

    def _wait_until_ready(self, process: subprocess.Popen[bytes], fd: int) -> int:
        received = b""
        progress = ""
        while True:
            if not select.select([fd], [], [], self._progress_interval_s)[0]:
                _say(f"Still starting: {progress}" if progress else "Still starting.")
                continue
            data = os.read(fd, 65536)
            if not data:
                return self._died(process)
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                word, _, text = line.decode("utf-8", "replace").partition(" ")
                text = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], text)
                if word == "PROGRESS":
                    progress = text
                elif word == "READY":
                    _say(f"TorchServe is ready (pid {process.pid}). {text}".rstrip())
                    _say(f"Logs: {self._log_folder()}")
                    return 0
                elif word == "FAILED":
                    return self._failed(process, text)

    def _failed(self, process: subprocess.Popen[bytes], reason: str) -> int:
        # It ends by itself; the next command should not find it still there.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._stop_timeout_s)
        self._remove_own_pid_file(process)
        if self._caught_signal is not None:
            return 128 + self._caught_signal
        _say(f"TorchServe did not start: {reason}")
        _say(f"Its log: {os.path.join(self._log_folder(), 'ts_log.log')}")
        return 1

    def _died(self, process: subprocess.Popen[bytes]) -> int:
        try:
            status = process.wait(self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            return self._failed(
                process, "the server closed the pipe on which its start is reported."
            )
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return self._failed(process, f"the server process ended {how} before it was ready.")

    def _wait_in_foreground(self, process: subprocess.Popen[bytes]) -> int:
        """0 when somebody stopped the server. (TorchServe hides a crash behind a 0 too.)"""
        status = process.wait()
        self._remove_own_pid_file(process)
        was_stopped = status in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        if was_stopped or self._caught_signal is not None:
            return 0
        _say(f"The server process ended with status {status}.")
        return 1

    def _remove_own_pid_file(self, process: subprocess.Popen[bytes]) -> None:
        if read_pid(self._pid_file) == process.pid:
            _remove(self._pid_file)

    def _log_folder(self) -> str:
        return os.path.join(self._cwd, self._environ.get("LOG_LOCATION") or "logs")

    # Checks before anything is started.

    def _check(self) -> None:
        given = self._arguments
        config_file = self._environ.get("TS_CONFIG_FILE") or given.ts_config
        for flag, path in (
            ("--ts-config", config_file),
            ("--log-config", given.log_config),
            ("--cpp-log-config", given.cpp_log_config),
        ):
            if path and not os.path.isfile(os.path.join(self._cwd, path)):
                raise CannotStart(f"{flag} file not found: {path}")
        config = read_config(os.path.join(self._cwd, config_file or "config.properties"))
        if config.get("vmargs"):
            _say("Warning: vmargs has no effect, this server does not run on Java.")
        model_store = given.model_store or config.get("model_store")
        if not model_store and not self._is_store_in_environment(config):
            raise CannotStart("Missing mandatory parameter --model-store")
        for flag, path in (
            ("--model-store", model_store),
            ("--workflow-store", given.workflow_store),
        ):
            # $$NAME$$ is for the server to replace.
            if path and "$$" not in path and not os.path.isdir(os.path.join(self._cwd, path)):
                raise CannotStart(f"{flag} directory not found: {path}")
        temp_dir = self._environ.get("TEMP")
        if temp_dir and not os.path.isdir(temp_dir):
            raise CannotStart(
                f"Invalid temp directory: {temp_dir}, please check TEMP environment variable."
            )

    def _is_store_in_environment(self, config: Mapping[str, str]) -> bool:
        is_enabled = config.get("enable_envvars_config", "").lower() == "true" or (
            self._environ.get("TS_ENABLE_ENVVARS_CONFIG", "").lower() == "true"
        )
        return is_enabled and bool(self._environ.get("TS_MODEL_STORE"))


def read_config(path: str) -> dict[str, str]:
    """The `key=value` lines of the file, {} if there is none.

    Enough for the few keys this command looks at; the server reads the whole grammar.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().split("\n")
    except OSError:
        return {}
    values = {}
    for line in lines:
        key, separator, value = line.partition("=")
        if separator and not line.lstrip().startswith(("#", "!")):
            values[key.strip()] = value.strip()
    return values


def read_pid(path: str) -> int | None:
    """The number in the file, None if there is no file or no number in it."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return int(file.read(32))
    except (OSError, ValueError):
        return None


def write_pid(path: str, pid: int) -> None:
    # The name is known to everybody and the folder is shared: never write through a link.
    _remove(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with open(fd, "w", encoding="ascii") as file:
        file.write(str(pid))


def is_server(pid: int) -> bool:
    """Whether a live process with that number is our server: numbers are used again."""
    if pid <= 0:
        return False
    command = _command_line(pid)
    return command is not None and any(SERVER_MODULE in word for word in command)


def _command_line(pid: int) -> list[str] | None:
    if os.path.isdir("/proc/self"):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[:1]
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            return None
        # In a container nobody may collect the status of an ended server: it stays as a zombie.
        return None if state == [b"Z"] else [os.fsdecode(word) for word in words]
    import psutil

    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return None


def wait_for_end(pid: int, timeout_s: float) -> bool:
    """True when the process, no child of ours, has ended; False after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while is_server(pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)


def _say(text: str) -> None:
    # The server writes to the same stdout, so what is said must not wait in a buffer.
    print(text, flush=True)


if __name__ == "__main__":
    start()
