"""Where key and certificate come from: key store, PEM files, or made for the moment."""

from __future__ import annotations

import contextlib
import os
import ssl
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from ts_frontend.http.tls import TlsFiles, tls_context, tls_files
from ts_frontend.settings import ConfigurationError, Settings

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)


@pytest.fixture
def made(tmp_path: Path) -> TlsFiles:
    """A self-signed pair."""
    folder = tmp_path / "made"
    folder.mkdir()
    return tls_files(Settings(), str(folder))


def keystore(path: Path, files: TlsFiles, password: bytes = b"changeit") -> str:
    key = load_pem_private_key(Path(files.private_key).read_bytes(), None)
    certificate = x509.load_pem_x509_certificate(Path(files.certificate).read_bytes())
    encryption = BestAvailableEncryption(password)
    path.write_bytes(
        pkcs12.serialize_key_and_certificates(b"ts", key, certificate, None, encryption)  # type: ignore[arg-type]
    )
    return str(path)


def handshake(files: TlsFiles, trusted: str, name: str) -> str | None:
    """The version that both sides agree on, over a connection in memory."""
    server_in, server_out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context = ssl.create_default_context(cafile=trusted)
    server = tls_context(files).wrap_bio(server_in, server_out, server_side=True)
    client = client_context.wrap_bio(server_out, server_in, server_hostname=name)
    for _ in range(4):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return client.version()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_self_signed(made: TlsFiles, name: str) -> None:
    assert handshake(made, made.certificate, name) == "TLSv1.3"
    assert all(stat.S_IMODE(os.stat(path).st_mode) == 0o600 for path in made)


def test_pem_files_are_used_as_they_are(made: TlsFiles) -> None:
    settings = Settings(certificate_file=made.certificate, private_key_file=made.private_key)
    assert tls_files(settings, "/nowhere") == made


def test_a_key_store_goes_before_pem_files(made: TlsFiles, tmp_path: Path) -> None:
    store = keystore(tmp_path / "k.p12", made)
    settings = Settings(keystore=store, certificate_file="/gone", private_key_file="/gone")
    files = tls_files(settings, str(tmp_path))
    assert handshake(files, made.certificate, "localhost") == "TLSv1.3"
    assert stat.S_IMODE(os.stat(files.private_key).st_mode) == 0o600


def test_what_is_wrong_with_a_key_store(made: TlsFiles, tmp_path: Path) -> None:
    settings = Settings(keystore=keystore(tmp_path / "k.p12", made), keystore_pass="geheim-x")
    with pytest.raises(ConfigurationError, match="keystore_pass is not its password") as refused:
        tls_files(settings, str(tmp_path))
    assert "geheim" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="keytool -importkeystore"):
        tls_files(replace(settings, keystore_type="JKS"), str(tmp_path))
    with pytest.raises(ConfigurationError, match="No such file"):
        tls_files(replace(settings, keystore="/gone.p12"), str(tmp_path))


def test_an_encrypted_pem_key_is_not_asked_for_at_a_terminal(
    made: TlsFiles, tmp_path: Path
) -> None:
    key = load_pem_private_key(Path(made.private_key).read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    )
    with pytest.raises(ConfigurationError, match="is encrypted; decrypt it with"):
        tls_context(TlsFiles(made.certificate, str(locked)))


def test_a_key_of_another_certificate(made: TlsFiles, tmp_path: Path) -> None:
    other = tls_files(Settings(), str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"(?i)key.values.mismatch"):
        tls_context(TlsFiles(made.certificate, other.private_key))
