"""Registrations that are refused leave nothing: store, temporary folder and registry are as before.

CVE-2024-35198: TorchServe answered with an error, and the file was in the model store all the same.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import MODELS, RunningServer, archive, start_server, wait_until

MANIFEST = {
    "createdOn": "01/01/2026 00:00:00",
    "runtime": "python",
    "model": {"modelName": "refused", "handler": "echo.py", "modelVersion": "1.0"},
    "archiverVersion": "0.12.0",
}


def mar(*extra: tuple[str, bytes], **model: str) -> bytes:
    """A sound archive with these entries besides. model: more of its manifest's `model`."""
    manifest = {**MANIFEST, "model": {**MANIFEST["model"], **model}}  # type: ignore[dict-item]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        file.writestr("echo.py", (MODELS / "echo.py").read_bytes())
        for name, content in extra:
            file.writestr(name, content)
    return packed.getvalue()


def tgz(*members: tuple[str, bytes, str]) -> bytes:
    """name, type, where a link leads."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        for name, kind, link in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, link
            file.addfile(entry)
    return packed.getvalue()


def with_config(text: str) -> bytes:
    return mar(("model-config.yaml", text.encode()), configFile="model-config.yaml")


# In the store: file name -> content.
STORED = {
    "dots.mar": mar(("../../escaped.py", b"x")),
    "absolute.mar": mar(("/tmp/escaped.py", b"x")),
    "bomb.mar": mar(("zeros", bytes(64 << 20))),
    "no-zip.mar": b"not an archive",
    "cut.mar": mar(("weights", os.urandom(1 << 20)))[: 1 << 19],
    "no-name.mar": mar(modelName=""),
    "runtime.mar": mar(modelName="r").replace(b'"python"', b'"rustic"'),
    "links.tar.gz": tgz(("m/out", tarfile.SYMTYPE, "/etc"), ("m/out/passwd", tarfile.REGTYPE, "")),
    "hard.tar.gz": tgz(("m/out", tarfile.LNKTYPE, "../../echo.mar")),
    "device.tar.gz": tgz(("m/null", tarfile.CHRTYPE, "")),
    "workers.mar": with_config("minWorkers: 3\nmaxWorkers: 2\n"),
    "self-test.mar": with_config("warmup: nothing\n"),
}


class Web(http.server.BaseHTTPRequestHandler):
    """A file of `STORED`, also with `new-` before its name; tricks; else a sound archive."""

    def do_GET(self) -> None:
        _, kind, rest = (self.path + "/").split("/", 2)
        rest = rest.rstrip("/")
        if kind == "status":
            self.send_error(int(rest))
        elif kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif kind == "half":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"P" * 1000)
        elif kind == "large":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(bytes(3 << 20))
        else:
            content = STORED.get(kind.removeprefix("new-"), mar())
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        server.handle_error = lambda *args: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def server(
    store: Path, web: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    archive(store, "echo", MODELS / "echo.py")
    archive(store, "fails", MODELS / "fails_on_import.py")
    (store / "clash.mar").write_bytes(mar(modelName="echo"))
    for name, content in STORED.items():
        (store / name).write_bytes(content)
    running = start_server(
        tmp_path_factory.mktemp("rejecting"),
        store,
        load_models="echo.mar",
        default_workers_per_model=1,
        allowed_urls=rf"http://127\\.0\\.0\\.1:{web}/.*",
        max_download_size=2 << 20,
        max_archive_ratio=50,
        download_timeout=20,
    )
    running.wait_ready("echo")
    yield running
    running.stop_and_leave_nothing()


def contents(*folders: Path) -> dict[str, str]:
    """Every path below `folders`, with what it is: the digest of a file, the target of a link."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                what = f"-> {os.readlink(path)}"
            elif path.is_file():
                what = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                what = f"{path.lstat().st_mode:o}"
            found[str(path)] = what
    return found


def url(path: str) -> Callable[[int], str]:
    return lambda port: f"http://127.0.0.1:{port}/{path}"


def same(text: str) -> Callable[[int], str]:
    return lambda port: text


# What is asked -> status and type.
REFUSED: dict[str, tuple[Callable[[int], str], dict[str, Any], int, str]] = {
    # The URL.
    "empty": (same(""), {}, 404, "ModelNotFoundException"),
    "not there": (same("gone.mar"), {}, 404, "ModelNotFoundException"),
    "traversal": (same("../store/echo.mar"), {}, 404, "ModelNotFoundException"),
    "traversal in a URL": (url("../x.mar"), {}, 404, "ModelNotFoundException"),
    "not allowed": (same("https://elsewhere.example/m.mar"), {}, 404, "ModelNotFoundException"),
    "file URL": (same("file:///etc/passwd"), {}, 404, "ModelNotFoundException"),
    "status 404": (url("status/404"), {}, 400, "DownloadArchiveException"),
    "status 500": (url("status/500"), {}, 400, "DownloadArchiveException"),
    "redirect away": (
        url("to/http://169.254.169.254/m.mar"),
        {},
        400,
        "DownloadArchiveException",
    ),
    "redirect to a file": (url("to/file:///etc/passwd"), {}, 400, "DownloadArchiveException"),
    "half a body": (url("half"), {}, 400, "DownloadArchiveException"),
    "too large": (url("large"), {}, 400, "DownloadArchiveException"),
    "wrong checksum": (
        lambda port: f"http://127.0.0.1:{port}/good.mar#sha256={'0' * 64}",
        {},
        400,
        "DownloadArchiveException",
    ),
    "name taken in the store": (url("echo.mar"), {}, 409, "ConflictStatusException"),
    # The archive, in the store and downloaded.
    **{
        name: (same(name), {"initial_workers": 1}, status, kind)
        for name, status, kind in (
            ("dots.mar", 400, "InvalidModelException"),
            ("absolute.mar", 400, "InvalidModelException"),
            ("bomb.mar", 400, "InvalidModelException"),
            ("no-zip.mar", 400, "InvalidModelException"),
            ("cut.mar", 400, "InvalidModelException"),
            ("no-name.mar", 400, "InvalidModelException"),
            ("links.tar.gz", 400, "InvalidModelException"),
            ("hard.tar.gz", 400, "InvalidModelException"),
            ("device.tar.gz", 400, "InvalidModelException"),
            ("workers.mar", 400, "BadRequestException"),
            ("self-test.mar", 400, "InvalidModelException"),
        )
    },
    "downloaded bomb": (url("new-bomb.mar"), {}, 400, "InvalidModelException"),
    "downloaded slip": (url("new-dots.mar"), {}, 400, "InvalidModelException"),
    "downloaded noise": (url("new-no-zip.mar"), {}, 400, "InvalidModelException"),
    # The name, and the other words.
    "name clash": (same("clash.mar"), {}, 409, "ConflictStatusException"),
    "name clash, downloaded": (
        url("other.mar"),
        {"model_name": "echo"},
        409,
        "ConflictStatusException",
    ),
    "runtime": (same("clash.mar"), {"runtime": "ruby"}, 400, "BadRequestException"),
    "no such runtime here": (
        same("clash.mar"),
        {"model_name": "l", "runtime": "LSP"},
        400,
        "BadRequestException",
    ),
    # The workers.
    "import": (
        same("fails.mar"),
        {"initial_workers": 1},
        500,
        "InternalServerException",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_registration_leaves_nothing(server: RunningServer, web: int, case: str) -> None:
    located, parameters, status, kind = REFUSED[case]
    folders = (server.store, server.folder / "tmp")
    before = contents(*folders)
    answer = server.register(located(web), **parameters)
    assert (answer.status_code, answer.json()["type"]) == (status, kind), answer.text
    assert contents(*folders) == before
    listed = server.session.get(f"{server.management}/models?limit=100", timeout=20).json()
    assert [model["modelName"] for model in listed["models"]] == ["echo"]
    assert server.predict("echo", b"still").content == b"still"


def test_of_registrations_at_once_one_wins_and_the_others_leave_nothing(
    server: RunningServer, web: int
) -> None:
    """Each downloads to the same file of the store."""
    folders = (server.store, server.folder / "tmp")
    before = contents(*folders)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: server.register(f"http://127.0.0.1:{web}/at-once.mar"), range(8))
        )
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    gone = server.session.delete(f"{server.management}/models/refused", timeout=20)
    assert gone.status_code == 200
    wait_until(lambda: contents(*folders) == before, what="the folders as they were")
