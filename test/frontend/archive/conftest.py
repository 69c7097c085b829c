"""Directories to compare before and after, archives in a line, and a web server."""

from __future__ import annotations

import http.server
import io
import json
import os
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ts_frontend.archive.model_store import ModelStore

LOOPBACK = r"http://127\.0\.0\.1:\d+/.*"


class Places:
    """The directories that a model store may change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"
        self.temp = root / "temp"
        self.store.mkdir()
        (self.temp / "models").mkdir(parents=True)

    def model_store(self, *allowed_urls: str, **settings: Any) -> ModelStore:
        urls = allowed_urls or ("file://.*", LOOPBACK)
        return ModelStore(str(self.store), str(self.temp), urls, **settings)

    def snapshot(self) -> dict[str, object]:
        """Everything below both directories: mode, and content or link target."""
        found: dict[str, object] = {}
        for top in (self.store, self.temp):
            for path in sorted(top.rglob("*")):
                mode = path.lstat().st_mode
                content: object = None
                if stat.S_ISLNK(mode):
                    content = os.readlink(path)
                elif stat.S_ISREG(mode):
                    content = path.read_bytes()
                found[str(path.relative_to(self.root))] = (mode, content)
        return found


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def _manifest(**model: Any) -> bytes:
    model = {"modelName": "echo", "modelVersion": "1.0", "handler": "echo.py", **model}
    return json.dumps({"createdOn": "x", "runtime": "python", "model": model}).encode()


@pytest.fixture(scope="session")
def manifest() -> Callable[..., bytes]:
    """manifest(**changes of the model entry) -> the file's bytes."""
    return _manifest


Files = dict[str | zipfile.ZipInfo | tarfile.TarInfo, bytes]


def _mar(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)  # type: ignore[arg-type]
    return buffer.getvalue()


def _tgz(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(str(name))
            if entry.isreg():
                entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def mar() -> Callable[..., bytes]:
    """mar({name or ZipInfo: content}) -> the bytes of a zip."""
    return _mar


@pytest.fixture(scope="session")
def tgz() -> Callable[..., bytes]:
    """tgz({name or TarInfo: content}) -> the bytes of a tar.gz."""
    return _tgz


@pytest.fixture(scope="session")
def echo_mar() -> bytes:
    return _mar(
        {"echo.py": b"def handle(data, context): ...\n", "MAR-INF/MANIFEST.json": _manifest()}
    )


@dataclass
class Web:
    """A web server on loopback; each path answers as the test says."""

    port: int
    answers: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = field(
        default_factory=dict
    )
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    # Set at the end of the test; a handler that hangs waits for it.
    is_over: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def serve(self, path: str, content: bytes, status: int = 200, **headers: str) -> str:
        def answer(request: http.server.BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            request.send_header("Content-Length", headers.pop("length", str(len(content))))
            for name, value in headers.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(content)

        self.answers[path] = answer
        return self.url(path)

    def redirect(self, path: str, location: str, status: int = 302) -> str:
        return self.serve(path, b"", status, Location=location)


@pytest.fixture
def web() -> Iterator[Web]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            server.requests.append((self.path, dict(self.headers)))
            if path in server.answers:
                server.answers[path](self)
            else:
                self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # clients here hang up on purpose

    with Server(("127.0.0.1", 0), Handler) as listener:
        server = Web(listener.server_address[1])
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.is_over.set()
        listener.shutdown()
        thread.join()
