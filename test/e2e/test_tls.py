"""HTTPS and gRPC over TLS, with each source of key and certificate."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
import requests
from google.protobuf.empty_pb2 import Empty
from serving import RunningServer, start_server

from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub

HTTPS = "https://127.0.0.1:0"
openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture
def pem(tmp_path: Path) -> tuple[Path, Path]:
    """(certificate, key) for localhost and 127.0.0.1."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def check(running: RunningServer, certificate: Path) -> None:
    """Both APIs over TLS with that certificate; plain HTTP is told what is wrong."""
    for address in (running.inference, running.management):
        answer = requests.options(f"{address}/", verify=str(certificate), timeout=20)
        assert answer.status_code == 200
        plain = requests.get(address.replace("https:", "http:"), timeout=20)
        assert plain.status_code == 403
        assert "only accepts HTTPS requests" in plain.json()["status"]
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    port = running.grpc_inference.rpartition(":")[2]
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        assert "Healthy" in InferenceAPIsServiceStub(channel).Ping(Empty(), timeout=20).health


@openssl
def test_pem_files(store: Path, tmp_path: Path, pem: tuple[Path, Path]) -> None:
    running = start_server(
        tmp_path / "server",
        store,
        inference_address=HTTPS,
        management_address="https://localhost:0",
        enable_grpc_ssl="true",
        certificate_file=str(pem[0]),
        private_key_file=str(pem[1]),
    )
    try:
        check(running, pem[0])
    finally:
        assert running.stop() == 0


@openssl
def test_a_key_store(store: Path, tmp_path: Path, pem: tuple[Path, Path]) -> None:
    pytest.importorskip("cryptography")
    keystore = tmp_path / "keystore.p12"
    subprocess.run(
        [
            *("openssl", "pkcs12", "-export", "-in", str(pem[0]), "-inkey", str(pem[1])),
            *("-out", str(keystore), "-passout", "pass:hunter2-hunter2"),
        ],
        check=True,
        capture_output=True,
    )
    running = start_server(
        tmp_path / "server",
        store,
        inference_address=HTTPS,
        management_address="https://localhost:0",
        enable_grpc_ssl="true",
        keystore=str(keystore),
        keystore_pass="hunter2-hunter2",
    )
    try:
        check(running, pem[0])
    finally:
        assert running.stop() == 0
    assert "hunter2" not in running.log.read_text()
    left = [path.name for path in (tmp_path / "server" / "tmp").rglob("*.key")]
    assert left == []


def test_a_self_signed_certificate(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    running = start_server(tmp_path / "server", store, inference_address=HTTPS)
    try:
        place = urlsplit(running.inference)
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"{running.inference}/ping", timeout=20)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection((place.hostname, place.port), timeout=20) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as secured,
        ):
            secured.sendall(b"GET /ping HTTP/1.1\r\nHost: h\r\n\r\n")
            assert secured.recv(100).startswith(b"HTTP/1.1 200 OK")
            assert secured.version() == "TLSv1.3"
        assert "this server signed itself" in running.log.read_text()
    finally:
        assert running.stop() == 0


def test_a_unix_socket(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    path = folder / "in.sock"
    running = start_server(tmp_path / "server", store, inference_address=f"unix:{path}")
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(path))
            client.sendall(b"GET /ping HTTP/1.1\r\nHost: h\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
    finally:
        assert running.stop() == 0
    assert not path.exists()
