"""Token authorization: three shared keys, two of which expire (contract, config section 7).

Keys are made at start and written to `key_file.json` in the working directory, readable by its
owner only; or they are given, by a file (`token_key_file`) or the environment (TS_INFERENCE_KEY,
TS_MANAGEMENT_KEY, TS_API_KEY), and are then their giver's to renew. Keys are compared in constant
time and never logged. The API key, which never expires, opens one door: making a new inference or
management key.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hmac
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ts_frontend.core.errors import ErrorKind, InvalidArgument, ServingError

logger = logging.getLogger(__name__)

FILE_NAME = "key_file.json"
KEY_BYTES = 6  # 8 characters, as TorchServe's clients expect to find
MAX_FILE_BYTES = 64 << 10
_BEARER = re.compile(rb"Bearer\s+(\S+)")
# Shorter ones are guessed; others cannot stand in a header.
_GIVEN_KEY = re.compile(r"[!-~]{8,512}")


class KeyKind(enum.Enum):
    MANAGEMENT = "management"
    INFERENCE = "inference"
    API = "API"


class InvalidKey(ServingError):
    kind = ErrorKind.UNAUTHENTICATED


class InvalidKeyFile(ValueError):
    """The file with given keys cannot be used; the text says why and holds no key."""


def _refused(action: str) -> InvalidKey:
    return InvalidKey(
        f"Token {action} failed. Token either incorrect, expired, or not provided correctly"
    )


class _Key(NamedTuple):
    value: bytes
    expires_s: float = float("inf")  # since the epoch


def given_keys(texts: Mapping[str, str]) -> dict[KeyKind, list[_Key]]:
    """Keys out of the environment. texts: by KeyKind value.

    Raises InvalidKeyFile.
    """
    return {KeyKind(name): [_given_key(name, text)] for name, text in texts.items()}


def read_key_file(path: str) -> dict[KeyKind, list[_Key]]:
    """The keys in a file: a JSON object with some of "inference", "management" and "API".

    Each is a key, a list of keys that are all good (for the time of a rotation), or what
    `key_file.json` holds: {"key": ..., "expiration time": ...}.
    Raises InvalidKeyFile.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise InvalidKeyFile(f"{path}: {error.strerror}") from error
    if len(text) > MAX_FILE_BYTES:
        raise InvalidKeyFile(f"{path}: more than {MAX_FILE_BYTES} bytes")
    try:
        content = json.loads(text)
    except ValueError:
        # The error's own text would quote the file.
        raise InvalidKeyFile(f"{path}: not JSON") from None
    kinds = {kind.value: kind for kind in KeyKind}
    if not isinstance(content, dict) or not content or content.keys() - kinds:
        raise InvalidKeyFile(f"{path}: an object with some of {', '.join(kinds)} is expected")
    if mode & stat.S_IROTH:
        logger.warning("%s holds keys and can be read by every user of this machine.", path)
    try:
        return {kinds[name]: _read_keys(name, value) for name, value in content.items()}
    except InvalidKeyFile as error:
        raise InvalidKeyFile(f"{path}: {error}") from None


def _read_keys(name: str, value: Any) -> list[_Key]:
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise InvalidKeyFile(f"{name}: a list without a key")
    keys = []
    for entry in entries:
        expires_s = float("inf")
        if isinstance(entry, dict):
            if time_text := entry.get("expiration time"):
                try:
                    expires_s = datetime.fromisoformat(time_text).timestamp()
                except (TypeError, ValueError):
                    raise InvalidKeyFile(f"{name}: the expiration time is none") from None
            entry = entry.get("key")
        keys.append(_given_key(name, entry)._replace(expires_s=expires_s))
    return keys


def _given_key(name: str, text: Any) -> _Key:
    if not isinstance(text, str) or not _GIVEN_KEY.fullmatch(text):
        raise InvalidKeyFile(f"{name}: a key has 8 to 512 visible ASCII characters")
    return _Key(text.encode())


class TokenAuthority:
    """The keys of one server and what they open.

    lifetime_s: how long a generated inference or management key lives.
    given:      keys that are not generated; see `given_keys`.
    key_file:   a file whose keys go before all others, read now and by `watch` when it changes.
    now:        seconds since the epoch; a file with clock times must survive the reader's clock.
    """

    def __init__(
        self,
        directory: str,
        lifetime_s: float,
        now: Callable[[], float] = time.time,
        *,
        given: Mapping[KeyKind, Sequence[_Key]] | None = None,
        key_file: str | None = None,
    ) -> None:
        """Raises InvalidKeyFile."""
        self.path = os.path.join(directory, FILE_NAME)
        self._lifetime_s = lifetime_s
        self._now = now
        self._given = dict(given or {})
        self._key_file = key_file
        self._key_file_state = _state_of(key_file)
        self._from_file = read_key_file(key_file) if key_file else {}
        self._generated: dict[KeyKind, _Key] = {}
        for kind in KeyKind:
            if not self._is_given(kind):
                self._renew(kind)

    @property
    def is_generating(self) -> bool:
        """Whether there are keys that clients find in `path`."""
        return bool(self._generated)

    def check(self, kind: KeyKind, authorization: bytes | None) -> None:
        """authorization: the header's value. Raises InvalidKey."""
        if not self._is_key(kind, authorization):
            raise _refused("Authorization")

    def refresh(self, wanted: str, authorization: bytes | None) -> None:
        """Make a new key for "inference" or "management", for the holder of the API key; the old
        one ends now.

        Raises InvalidKey, and InvalidArgument for a key that was given.
        """
        kinds = {"management": KeyKind.MANAGEMENT, "inference": KeyKind.INFERENCE}
        if wanted not in kinds or not self._is_key(KeyKind.API, authorization):
            raise _refused("Authentication")
        if self._is_given(kinds[wanted]):
            raise InvalidArgument(
                f"The {wanted} key was given to the server and is renewed where it came from."
            )
        self._renew(kinds[wanted])
        self.write_file()

    def write_file(self) -> None:
        """Replace the key file in one step; it is never readable by others, not even for a moment.

        Without a file nobody can learn the keys, so a folder that cannot be written is an error to
        see. Given keys are not written.
        """
        content: dict[str, dict[str, str]] = {}
        for kind, key in self._generated.items():
            content[kind.value] = {"key": key.value.decode()}
            if key.expires_s != float("inf"):
                expires = datetime.fromtimestamp(key.expires_s, UTC)
                content[kind.value]["expiration time"] = expires.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if not content:
            return
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

    async def watch(self, interval_s: float) -> None:
        """Take over the keys of `key_file` whenever it changes; for ever.

        A file that cannot be used leaves the keys as they are: a slip in it locks nobody out.
        """
        while self._key_file is not None:
            await asyncio.sleep(interval_s)
            self.reload()

    def reload(self) -> None:
        """Look once whether the file has changed."""
        state = _state_of(self._key_file)
        if self._key_file is None or state == self._key_file_state:
            return
        self._key_file_state = state
        try:
            self._from_file = read_key_file(self._key_file)
        except InvalidKeyFile as error:
            logger.error("The former keys stay in force: %s", error)
            return
        logger.info("The keys of %s are in force.", self._key_file)
        for kind in KeyKind:
            if self._is_given(kind):
                self._generated.pop(kind, None)
            elif kind not in self._generated:  # the file no longer has it
                self._renew(kind)
        self.write_file()

    def _is_given(self, kind: KeyKind) -> bool:
        return kind in self._from_file or kind in self._given

    def _keys(self, kind: KeyKind) -> Sequence[_Key]:
        keys = self._from_file.get(kind) or self._given.get(kind)
        return keys or [self._generated[kind]]

    def _is_key(self, kind: KeyKind, authorization: bytes | None) -> bool:
        match = _BEARER.fullmatch(authorization or b"")
        presented = match[1] if match else b""
        now_s = self._now()
        is_good = False
        for key in self._keys(kind):
            # Compare in any case, and with all of them, so that the time tells nothing.
            is_equal = hmac.compare_digest(presented, key.value)
            is_good |= is_equal and now_s < key.expires_s
        return is_good

    def _renew(self, kind: KeyKind) -> None:
        key = _Key(secrets.token_urlsafe(KEY_BYTES).encode())
        if kind is not KeyKind.API:
            key = key._replace(expires_s=self._now() + self._lifetime_s)
        self._generated[kind] = key


def _state_of(path: str | None) -> tuple[int, ...] | None:
    """What changes when the file does, also where a mounted secret is swapped by a link."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
