"""Snapshots: the configuration and the models of a running server, in files that TorchServe reads.

A snapshot is a properties file with the whole effective configuration and the key `model_snapshot`,
a JSON text (contract, config section 9). `<LOG_LOCATION>/config` gets one when the server has
started, after each change of its models and when it stops; the next start without an explicit
configuration goes on from the newest.

`parse_models` and `format_models` are the JSON text; `SnapshotFolder` the files; `SnapshotWriter`
writes them beside the event loop, one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

logger = logging.getLogger(__name__)

KEY = "model_snapshot"
_NAME = re.compile(r"(\d{17})-(?:startup|snapshot|shutdown)\.cfg")
_STAMP = "%Y%m%d%H%M%S"


class InvalidSnapshot(ValueError):
    """The text of `model_snapshot` is not what a snapshot holds."""


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One version as a snapshot keeps it: enough to register and scale it again.

    archive_name: the file in the model store (`marName`).
    """

    name: str
    version: str
    archive_name: str
    is_default: bool = False
    min_workers: int = 0
    max_workers: int = 0
    batch_size: int = 1
    max_batch_delay_ms: int = 100
    response_timeout_s: int = 120
    startup_timeout_s: int = 120
    runtime: str = "python"
    parallel_level: int = 0


def parse_models(text: str) -> list[ModelSnapshot]:
    """The versions that `model_snapshot` names, in the order of the text.

    Raises InvalidSnapshot.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InvalidSnapshot(f"not JSON: {error}") from error
    models = content.get("models", {}) if isinstance(content, dict) else None
    if not isinstance(models, dict):
        raise InvalidSnapshot("an object with the object `models` in it is expected")
    found = []
    for name, versions in models.items():
        if not isinstance(versions, dict):
            raise InvalidSnapshot(f"{name}: an object of versions is expected")
        found += [_parse_version(name, version, entry) for version, entry in versions.items()]
    return found


def _parse_version(name: str, version: str, entry: Any) -> ModelSnapshot:
    where = f"{name} {version}"
    if not isinstance(entry, dict) or not isinstance(entry.get("marName"), str):
        raise InvalidSnapshot(f"{where}: an object with a marName is expected")

    def count(key: str, default: int, least: int) -> int:
        value = entry.get(key, default)
        if type(value) is not int or value < least:
            raise InvalidSnapshot(f"{where}: {key} should be a whole number of at least {least}")
        return value

    min_workers = count("minWorkers", 0, 0)
    return ModelSnapshot(
        name,
        version,
        entry["marName"],
        is_default=entry.get("defaultVersion") is True,
        min_workers=min_workers,
        max_workers=max(min_workers, count("maxWorkers", min_workers, 0)),
        batch_size=count("batchSize", 1, 1),
        max_batch_delay_ms=count("maxBatchDelay", 100, 0),
        response_timeout_s=count("responseTimeout", 120, 1),
        startup_timeout_s=count("startupTimeout", 120, 1),
        runtime=str(entry.get("runtimeType") or "python"),
        parallel_level=count("parallelLevel", 0, 0),
    )


def format_models(models: Sequence[ModelSnapshot], name: str, created_s: float) -> str:
    """The text of `model_snapshot`. name: of the snapshot's file."""
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for model in models:
        entry: dict[str, Any] = {
            "defaultVersion": model.is_default,
            "marName": model.archive_name,
            "minWorkers": model.min_workers,
            "maxWorkers": model.max_workers,
            "batchSize": model.batch_size,
            "maxBatchDelay": model.max_batch_delay_ms,
            "responseTimeout": model.response_timeout_s,
            "startupTimeout": model.startup_timeout_s,
            "runtimeType": model.runtime,
        }
        if model.parallel_level > 0:
            entry["parallelLevel"] = model.parallel_level
        by_name.setdefault(model.name, {})[model.version] = entry
    return json.dumps(
        {
            "name": name,
            "modelCount": len(models),
            "created": int(created_s * 1000),
            "models": by_name,
        },
        indent=2,
    )


class SnapshotFolder:
    """The files of `<LOG_LOCATION>/config`; blocking.

    to_text: properties (key -> value) and a comment -> the text of a file.
    keep:    so many of the newest stay.
    now:     seconds since the epoch.
    """

    def __init__(
        self,
        path: str,
        to_text: Callable[[Mapping[str, str], str], str],
        *,
        keep: int = 100,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._to_text = to_text
        self._keep = keep
        self._now = now

    def write(
        self, kind: str, properties: Mapping[str, str], models: Sequence[ModelSnapshot]
    ) -> str:
        """Write one in one step and return its path; it is readable by its owner only.

        kind: "startup", "snapshot" or "shutdown".
        Raises OSError.
        """
        os.makedirs(self.path, exist_ok=True)
        created_s = self._now()
        name = f"{self._next_stamp(created_s)}-{kind}.cfg"
        values = {**properties, KEY: format_models(models, name, created_s)}
        text = self._to_text(values, f"Saving snapshot\n{time.ctime(created_s)}")
        path = os.path.join(self.path, name)
        partial = os.path.join(self.path, f".{name}.{os.getpid()}.tmp")
        try:
            # The key store's password may be in it, so nobody else may have made the file.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
        self._prune()
        return path

    def names(self) -> list[str]:
        """Oldest first."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self.path) if _NAME.fullmatch(name))
        return []

    def _next_stamp(self, now_s: float) -> str:
        """Local time to the millisecond, later than every snapshot's that is there.

        Names decide which is the newest, and local time goes back an hour once a year.
        """
        wanted = datetime.fromtimestamp(now_s)
        names = self.names()
        if names:
            newest = names[-1][:17]
            with contextlib.suppress(ValueError):
                last = datetime.strptime(newest[:14], _STAMP)
                last += timedelta(milliseconds=int(newest[14:]))
                wanted = max(wanted, last + timedelta(milliseconds=1))
        return f"{wanted:{_STAMP}}{wanted.microsecond // 1000:03d}"

    def _prune(self) -> None:
        for name in self.names()[: -self._keep]:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.path, name))


class SnapshotWriter:
    """Writes snapshots in a thread, in the order of the events; changes that come together share
    one.

    take: the properties and the models at this moment.
    A snapshot that cannot be written is an error in the log and no more.
    """

    def __init__(
        self,
        folder: SnapshotFolder,
        take: Callable[[], tuple[Mapping[str, str], Sequence[ModelSnapshot]]],
    ) -> None:
        self._folder = folder
        self._take = take
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_due = False

    def note_change(self) -> None:
        """Write a "snapshot" soon."""
        if not self._is_due:
            self._is_due = True
            task = asyncio.create_task(self._write_change(), name="snapshot")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _write_change(self) -> None:
        async with self._lock:
            self._is_due = False  # a change from here on is not in this one
            await self._write("snapshot")

    async def write(self, kind: str) -> None:
        """Write one now, after those that are due."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        async with self._lock:
            await self._write(kind)

    async def _write(self, kind: str) -> None:
        properties, models = self._take()
        try:
            path = await asyncio.to_thread(self._folder.write, kind, properties, models)
        except OSError as error:
            logger.error(
                "Cannot write a snapshot to %s: %s. Make the folder writable, or start with "
                "--no-config-snapshots.",
                self._folder.path,
                error.strerror,
            )
        else:
            logger.info("Saved snapshot %s", path)
