"""Key and certificate for TLS: PEM files, a PKCS12 key store, or a certificate made for the moment.

The order is TorchServe's: key store, PEM pair, self-signed (contract, config section 3). All end as
two PEM files, the form that HTTP and gRPC both take; those made here lie in a folder of the server
alone and go with it. `cryptography` is asked for only where it is needed (extra `crypto`).
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from typing import Any, NamedTuple

from ts_frontend.settings import ConfigurationError, Settings

SELF_SIGNED_DAYS = 365


class TlsFiles(NamedTuple):
    """PEM files."""

    certificate: str
    private_key: str


def tls_files(settings: Settings, folder: str) -> TlsFiles:
    """The files to serve with; new ones are written into `folder`, which only we can read.

    Raises ConfigurationError.
    """
    if settings.keystore:
        return _write(folder, *_read_keystore(settings))
    if settings.certificate_file and settings.private_key_file:
        return TlsFiles(settings.certificate_file, settings.private_key_file)
    return _write(folder, *_self_signed())


def is_self_signing(settings: Settings) -> bool:
    return not settings.keystore and not settings.certificate_file


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 and newer. (TorchServe has 1.2 only, with two ciphers.)

    Raises ConfigurationError.
    """

    def no_password() -> str:
        # Without this OpenSSL would ask for it at a terminal that nobody watches.
        raise ConfigurationError(
            f"{files.private_key} is encrypted; decrypt it with: openssl pkey -in {{file}} -out "
            "{file}"
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.certificate, files.private_key, no_password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{files.certificate} and {files.private_key}: {error}") from error
    return context


def _crypto(what_for: str) -> Any:
    try:
        import cryptography.hazmat.primitives.serialization as serialization
    except ImportError as error:
        raise ConfigurationError(
            f"{what_for} needs the package cryptography: pip install 'torchserve[crypto]', "
            "or set private_key_file and certificate_file (PEM)"
        ) from error
    return serialization


def _read_keystore(settings: Settings) -> tuple[bytes, bytes]:
    """(certificate chain, private key), both PEM."""
    path = str(settings.keystore)
    where = f"keystore {path} ({settings.origin('keystore')})"
    if settings.keystore_type.upper() != "PKCS12":
        raise ConfigurationError(
            f"{where}: the type {settings.keystore_type} cannot be read; convert it with: keytool "
            f"-importkeystore -srckeystore {path} -destkeystore {path}.p12 -deststoretype PKCS12"
        )
    serialization = _crypto("A keystore")
    from cryptography.hazmat.primitives.serialization import pkcs12

    try:
        with open(path, "rb") as file:
            content = file.read()
        key, certificate, chain = pkcs12.load_key_and_certificates(
            content, settings.keystore_pass.encode()
        )
    except OSError as error:
        raise ConfigurationError(f"{where}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(
            f"{where}: it is no PKCS12 key store, or keystore_pass is not its password"
        ) from error
    if key is None or certificate is None:
        raise ConfigurationError(f"{where}: there is no key with a certificate in it")
    pem = serialization.Encoding.PEM
    return (
        b"".join(each.public_bytes(pem) for each in (certificate, *chain)),
        _private_pem(key),
    )


def _self_signed() -> tuple[bytes, bytes]:
    """(certificate, private key), both PEM, for this machine's names and loopback."""
    serialization = _crypto("An https address without a certificate of its own")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    host = socket.gethostname()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64] or "torchserve")])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [
        x509.DNSName(each) for each in dict.fromkeys(("localhost", host)) if each.isascii() and each
    ]
    names += [x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", "::1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key)


def _private_pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem


def _write(folder: str, certificate: bytes, private_key: bytes) -> TlsFiles:
    files = TlsFiles(os.path.join(folder, "tls.crt"), os.path.join(folder, "tls.key"))
    for path, content in zip(files, (certificate, private_key), strict=True):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
    return files
