"""Which archives may be loaded, by the SHA-256 of their content (settings `archive_checksums*`).

The list is a file as `sha256sum *.mar` writes it. With a public key (Ed25519) the list itself must
be signed: `<list>.sig` holds the signature of the list's bytes, 64 raw bytes or their base64. An
archive is copied to a place of its own while its sum is taken, and unpacked from there, so that
nobody can exchange it in between. List and signature are read anew for each archive.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
from collections.abc import Callable
from typing import Any

from ts_frontend.core.errors import InvalidModel

logger = logging.getLogger(__name__)

MAX_LIST_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 20
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


class ListRefused(Exception):
    """The list cannot be used; the text says why."""


class ChecksumList:
    """path: of the list. public_key: PEM file of an Ed25519 key; None: the list is not signed."""

    def __init__(self, path: str, public_key: str | None = None) -> None:
        self._path = path
        self._public_key = public_key

    def check(self) -> None:
        """Raises ListRefused if no archive at all could be loaded."""
        self._read()

    def copy_verified(
        self, source: str, name: str, target: str, check_cancelled: Callable[[], None]
    ) -> None:
        """Copy the archive `source`, which the list knows as `name`, to the new file `target`.

        Raises InvalidModel if its content is not the one listed; `target` is then the caller's to
        remove, as after any error.
        """
        try:
            listed = self._read().get(name)
        except ListRefused as error:
            logger.error("No archive can be loaded: %s", error)
            raise InvalidModel(
                f"The archive {name} cannot be verified; the server's log says why."
            ) from error
        if listed is None:
            raise InvalidModel(f"The archive {name} is not listed in archive_checksums.")
        digest = hashlib.sha256()
        with open(source, "rb") as reader, open(target, "xb") as writer:
            while chunk := reader.read(_CHUNK_BYTES):
                check_cancelled()
                digest.update(chunk)
                writer.write(chunk)
        if not hmac.compare_digest(digest.hexdigest(), listed):
            raise InvalidModel(
                f"The archive {name} has another SHA-256 than archive_checksums demands."
            )

    def _read(self) -> dict[str, str]:
        text = _read_file(self._path)
        if self._public_key is not None:
            signature = _read_file(f"{self._path}.sig")
            _verify(text, signature, self._path, self._public_key)
        sums: dict[str, str] = {}
        for number, line in enumerate(text.decode("utf-8", "surrogateescape").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                raise ListRefused(
                    f"{self._path}:{number}: 64 hexadecimal digits, two blanks and a file's name "
                    "are expected, as sha256sum writes them"
                )
            name = match[2].removeprefix("./")
            if sums.setdefault(name, match[1].lower()) != match[1].lower():
                raise ListRefused(f"{self._path}:{number}: {name} is listed with another sum")
        return sums


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_LIST_BYTES + 1)
    except OSError as error:
        raise ListRefused(f"{path}: {error.strerror}") from error
    if len(content) > MAX_LIST_BYTES:
        raise ListRefused(f"{path}: more than {MAX_LIST_BYTES} bytes")
    return content


def _verify(content: bytes, signature: bytes, path: str, public_key: str) -> None:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise ListRefused(
            "archive_checksums_key needs the package cryptography: pip install 'torchserve[crypto]'"
        ) from error
    try:
        key: Any = load_pem_public_key(_read_file(public_key))
    except ValueError as error:
        raise ListRefused(f"{public_key}: not a PEM public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ListRefused(f"{public_key}: not an Ed25519 key")
    if len(signature) != 64:
        try:
            signature = base64.b64decode(b"".join(signature.split()), validate=True)
        except binascii.Error as error:
            raise ListRefused(f"{path}.sig: neither 64 bytes nor their base64") from error
    try:
        key.verify(signature, content)
    except InvalidSignature:
        raise ListRefused(
            f"{path}.sig: not the signature of {os.path.basename(path)} by {public_key}"
        ) from None
