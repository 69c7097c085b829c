"""Token authorization: three shared keys, two of which expire (contract, config section 7).

The keys are made at start and written to `key_file.json` in the working directory, readable by its
owner only. They are compared in constant time and never logged. The API key, which never expires,
opens one door: making a new inference or management key.
"""

from __future__ import annotations

import contextlib
import enum
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime

from ts_frontend.core.errors import ErrorKind, ServingError

logger = logging.getLogger(__name__)

FILE_NAME = "key_file.json"
KEY_BYTES = 6  # 8 characters, as TorchServe's clients expect to find
_BEARER = re.compile(rb"Bearer\s+(\S+)")


class KeyKind(enum.Enum):
    MANAGEMENT = "management"
    INFERENCE = "inference"
    API = "API"


class InvalidKey(ServingError):
    kind = ErrorKind.UNAUTHENTICATED


def _refused(action: str) -> InvalidKey:
    return InvalidKey(
        f"Token {action} failed. Token either incorrect, expired, or not provided correctly"
    )


class TokenAuthority:
    """The keys of one server and what they open.

    lifetime_s: how long an inference or management key lives.
    now:        seconds since the epoch; a file with clock times must survive the reader's clock.
    """

    def __init__(
        self, directory: str, lifetime_s: float, now: Callable[[], float] = time.time
    ) -> None:
        self.path = os.path.join(directory, FILE_NAME)
        self._lifetime_s = lifetime_s
        self._now = now
        self._keys: dict[KeyKind, bytes] = {}
        self._expires: dict[KeyKind, float] = {}
        for kind in KeyKind:
            self._renew(kind)

    def check(self, kind: KeyKind, authorization: bytes | None) -> None:
        """authorization: the header's value. Raises InvalidKey."""
        if not self._is_key(kind, authorization):
            raise _refused("Authorization")

    def refresh(self, wanted: str, authorization: bytes | None) -> None:
        """Make a new key for "inference" or "management", for the holder of the API key; the old
        one ends now.

        Raises InvalidKey.
        """
        kinds = {"management": KeyKind.MANAGEMENT, "inference": KeyKind.INFERENCE}
        if wanted not in kinds or not self._is_key(KeyKind.API, authorization):
            raise _refused("Authentication")
        self._renew(kinds[wanted])
        self.write_file()

    def write_file(self) -> None:
        """Replace the key file in one step; it is never readable by others, not even for a moment.

        Without a file nobody can learn the keys, so a folder that cannot be written is an error to
        see.
        """
        content: dict[str, dict[str, str]] = {}
        for kind in KeyKind:
            content[kind.value] = {"key": self._keys[kind].decode()}
            if kind in self._expires:
                expires = datetime.fromtimestamp(self._expires[kind], UTC)
                content[kind.value]["expiration time"] = expires.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        partial = f"{self.path}.{os.getpid()}.tmp"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(json.dumps(content, indent=2) + "\n")
            os.replace(partial, self.path)
        except OSError as error:
            logger.error(
                "Cannot write the keys to %s: %s. Clients cannot be authorized; make the folder "
                "writable, or start with --disable-token-auth.",
                self.path,
                error.strerror,
            )

    def _is_key(self, kind: KeyKind, authorization: bytes | None) -> bool:
        match = _BEARER.fullmatch(authorization or b"")
        given = match[1] if match else b""
        # Compare in any case, so that the time tells nothing.
        is_equal = hmac.compare_digest(given, self._keys[kind])
        return is_equal and self._now() < self._expires.get(kind, float("inf"))

    def _renew(self, kind: KeyKind) -> None:
        self._keys[kind] = secrets.token_urlsafe(KEY_BYTES).encode()
        if kind is not KeyKind.API:
            self._expires[kind] = self._now() + self._lifetime_s
