"""Whatever a client sends wrong: the contract's error, and nothing left behind."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from serving import MODELS, RunningServer, archive, start_server

MANIFEST = {
    "runtime": "python",
    "model": {"modelName": "m", "handler": "echo.py", "modelVersion": "1.0"},
    "archiverVersion": "0.12.0",
    "createdOn": "01/01/2026 00:00:00",
}


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    archive(store, "echo", MODELS / "echo.py")
    running = start_server(
        tmp_path_factory.mktemp("server"),
        store,
        max_request_size=100_000,
        allowed_urls="https://models.example.org/.*",
    )
    assert running.register("echo.mar", initial_workers=1).status_code == 200
    yield running
    assert running.stop() == 0


def picture(*folders: Path) -> dict[str, str]:
    """Every file and link below `folders`, with what it holds."""
    seen = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                seen[str(path)] = f"-> {path.readlink()}"
            elif path.is_file():
                seen[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                seen[str(path)] = "folder" if path.is_dir() else "special"
    return seen


def zipped(entries: dict[str, bytes], manifest: object = MANIFEST) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive_file:
        for name, body in entries.items():
            archive_file.writestr(name, body)
        if manifest is not None:
            text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
            archive_file.writestr("MAR-INF/MANIFEST.json", text)
    return file.getvalue()


def linked_tar(kind: bytes, target: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive_file:
        link = tarfile.TarInfo("m/link")
        link.type, link.linkname = kind, target
        archive_file.addfile(link)
        text = json.dumps(MANIFEST).encode()
        entry = tarfile.TarInfo("m/MAR-INF/MANIFEST.json")
        entry.size = len(text)
        archive_file.addfile(entry, io.BytesIO(text))
    return file.getvalue()


GOOD = zipped({"echo.py": (MODELS / "echo.py").read_bytes()})
WRONG_ARCHIVES = {
    "empty.mar": b"",
    "text.mar": b"this is no archive",
    "truncated.mar": GOOD[: len(GOOD) // 2],
    "manifest-is-a-list.mar": zipped({}, b"[1, 2]"),
    "manifest-is-no-json.mar": zipped({}, b"{"),
    "dotdot.mar": zipped({"../outside.py": b"x"}),
    "absolute.mar": zipped({"/tmp/outside.py": b"x"}),
    "backslash.mar": zipped({"..\\outside.py": b"x"}),
    "symlink.tar.gz": linked_tar(tarfile.SYMTYPE, "/etc/passwd"),
    "hardlink.tar.gz": linked_tar(tarfile.LNKTYPE, "../../etc/passwd"),
    "device.tar.gz": linked_tar(tarfile.CHRTYPE, ""),
    "fifo.tar.gz": linked_tar(tarfile.FIFOTYPE, ""),
    "bomb.mar": zipped({"zeros": bytes(100 * 1024 * 1024)}),
}


@pytest.mark.parametrize("name", WRONG_ARCHIVES)
def test_a_wrong_archive_is_refused_and_leaves_nothing(
    server: RunningServer, store: Path, name: str
) -> None:
    (store / name).write_bytes(WRONG_ARCHIVES[name])
    before = picture(store, server.folder / "tmp")
    resident = psutil.Process(server.process.pid).memory_info().rss
    answer = server.register(name, initial_workers=1)
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"] == "InvalidModelException"
    assert str(server.folder) not in answer.text
    assert picture(store, server.folder / "tmp") == before
    grown = psutil.Process(server.process.pid).memory_info().rss - resident
    assert grown < 32 * 1024 * 1024
    (store / name).unlink()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://elsewhere.example.org/m.mar", "does not match any allowed URL(s)"),
        ("http://169.254.169.254/m.mar", "does not match any allowed URL(s)"),
        ("file:///etc/passwd", "does not match any allowed URL(s)"),
        ("../store/echo.mar", "Relative path is not allowed in url"),
        ("/etc/passwd", "Model not found at: /etc/passwd"),
    ],
)
def test_cve_2024_35198_a_location_that_is_not_allowed(
    server: RunningServer, store: Path, url: str, message: str
) -> None:
    before = picture(store, server.folder / "tmp")
    answer = server.register(url)
    assert (answer.status_code, answer.json()["type"]) == (404, "ModelNotFoundException")
    assert message in answer.json()["message"]
    assert picture(store, server.folder / "tmp") == before


def test_a_name_clash_leaves_nothing(server: RunningServer, store: Path) -> None:
    before = picture(store, server.folder / "tmp")
    assert server.register("echo.mar").status_code == 409
    assert picture(store, server.folder / "tmp") == before


def test_a_body_over_the_limit(server: RunningServer) -> None:
    answer = server.predict("echo", bytes(100_001))
    assert answer.status_code == 413
    assert "max_request_size" in answer.json()["message"]
    assert server.predict("echo", bytes(100_000)).status_code == 200


def raw(server: RunningServer, text: bytes) -> bytes:
    """What the inference listener answers to these bytes, up to the end of the connection."""
    place = urlsplit(server.inference)
    with socket.create_connection((place.hostname, place.port), timeout=20) as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        heard = b""
        while piece := client.recv(65536):
            heard += piece
    return heard


HEAD = b"POST /predictions/echo HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nhello\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        HEAD + b"Content-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n",
    ],
)
def test_bytes_that_are_no_http(server: RunningServer, text: bytes) -> None:
    answer = raw(server, text)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b'"type": "BadRequestException"' in answer
    assert b'"message": "Invalid HTTP message."' in answer


def test_a_broken_form(server: RunningServer) -> None:
    answer = server.session.post(
        f"{server.inference}/predictions/echo",
        data=b"--b\r\nContent-Disposition: form-data; name=data\r\n\r\nno end",
        headers={"content-type": "multipart/form-data; boundary=b"},
        timeout=20,
    )
    assert (answer.status_code, answer.json()["type"]) == (400, "BadRequestException")


def test_broken_json_reaches_the_handler_as_bytes(server: RunningServer) -> None:
    answer = server.session.post(
        f"{server.inference}/predictions/echo",
        data=b'{"a": ',
        headers={"content-type": "application/json"},
        timeout=20,
    )
    assert (answer.status_code, answer.content) == (200, b'{"a": ')


# Each 2 of the one before: written out it has more than 10^9 items.
ALIAS_BOMB = b"{a0: &a0 [x, x], " + b", ".join(
    b"a%d: &a%d [*a%d, *a%d]" % (number, number, number - 1, number - 1) for number in range(1, 30)
)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"url"',
        b"\xff",
        b'{"url": "\xff"}',
        b"[" * 60_000,
        b'{"a":' * 12_000,
        b"{a: " * 4_000,
        b'{"batch_size": %b}' % (b"9" * 5000),
        b"{batch_size: 1e, url: !!int ''}",
        b"{url: 2001-99-99}",
        b"{? {a: b} : c}",
        b"{url: !!python/object/apply:os.system [true]}",
        ALIAS_BOMB + b", url: *a29}",
        b"{url: " + b"x, " * 20_000,
    ],
    ids=lambda body: ascii(body[:30]),
)
@pytest.mark.parametrize("path", ["", "/echo/rollout"])
def test_a_management_body_that_is_no_json_object(
    server: RunningServer, path: str, body: bytes
) -> None:
    began_s = time.monotonic()
    answer = server.session.post(
        f"{server.management}/models{path}",
        data=body,
        headers={"content-type": "application/json"},
        timeout=20,
    )
    assert (answer.status_code, answer.json()["type"]) == (400, "BadRequestException")
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("parameters", [{"min_worker": -1}, {"min_worker": 3, "max_worker": 2}])
def test_serve_2038_impossible_numbers_of_workers(
    server: RunningServer, parameters: dict[str, int]
) -> None:
    answer = server.session.put(f"{server.management}/models/echo", params=parameters, timeout=20)
    assert (answer.status_code, answer.json()["type"]) == (400, "BadRequestException")
    assert len(server.worker_pids("echo")) == 1
