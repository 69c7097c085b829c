"""Starts the load clients and reads what they saw."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from benchmarks.load import grpc_client, http_client
from benchmarks.load.outcome import LoadFailed, Outcome, parse

_ROOT = Path(__file__).resolve().parents[2]
_LUA = Path(__file__).with_name("wrk.lua")
_GRACE_S = 60.0  # for connections that are still waiting for an answer at the end


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def wrk_version() -> str:
    """ "" where wrk is not installed."""
    if not shutil.which("wrk"):
        return ""
    done = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
    return " ".join((done.stdout + done.stderr).split()[:2])


class Clients:
    """folder: for the bodies, which the clients read from files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.has_wrk = bool(wrk_version())

    def http(self, port: int, request: Request, *, connections: int, seconds: float) -> Outcome:
        """As many requests as the server answers. Raises LoadFailed."""
        if not self.has_wrk:
            return self.http_asyncio(port, request, b"", connections=connections, seconds=seconds)
        environment = {
            **os.environ,
            "WRK_METHOD": request.method,
            "WRK_BODY": self._file("body", request.body),
            "WRK_HEADERS": "".join(f"{n}: {v}\n" for n, v in request.headers.items()),
        }
        command = ["wrk", "--threads", "1", "--connections", str(connections)]
        command += ["--duration", f"{max(1, round(seconds))}s", "--timeout", "30s", "--latency"]
        command += ["--script", str(_LUA), f"http://127.0.0.1:{port}{request.path}"]
        return _run(command, "", seconds, environment)

    def http_asyncio(
        self,
        port: int,
        request: Request,
        answer: bytes,
        *,
        connections: int,
        seconds: float,
    ) -> Outcome:
        """The same with our own client, which times first chunks and compares bodies with `answer`
        unless that is empty. Raises LoadFailed.
        """
        job = http_client.Job(
            "127.0.0.1",
            port,
            request.method,
            request.path,
            request.headers,
            self._file("body", request.body),
            self._file("answer", answer) if answer else "",
            connections,
            seconds,
        )
        return _run_module("benchmarks.load.http_client", job, seconds)

    def grpc(
        self,
        target: str,
        method: str,
        message: bytes,
        answer: bytes,
        *,
        connections: int,
        seconds: float,
    ) -> Outcome:
        """Raises LoadFailed."""
        job = grpc_client.Job(
            target,
            method,
            self._file("message", message),
            self._file("reply", answer),
            connections,
            seconds,
        )
        return _run_module("benchmarks.load.grpc_client", job, seconds)

    def _file(self, name: str, content: bytes) -> str:
        path = self._folder / name
        path.write_bytes(content)
        return str(path)


def _run_module(module: str, job: http_client.Job | grpc_client.Job, seconds: float) -> Outcome:
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", module]
    return _run(command, json.dumps(asdict(job)), seconds, environment)


def _run(command: list[str], text: str, seconds: float, environment: dict[str, str]) -> Outcome:
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            env=environment,
            timeout=seconds + _GRACE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{command[0]} did not end within {error.timeout:.0f} s") from error
    if done.returncode:
        raise LoadFailed(f"{' '.join(command[:3])}: {(done.stderr or done.stdout).strip()[-400:]}")
    return parse(done.stdout)
