"""A model's files on disk, ready for a worker: unpacked, or linked where they already lie open."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Sequence

from ts_frontend.archive.manifest import MANIFEST_PATH, MAX_MANIFEST_BYTES, Manifest
from ts_frontend.archive.model_config import (
    MAX_CONFIG_BYTES,
    ModelFileConfig,
    parse_model_config,
)
from ts_frontend.core.errors import InvalidModel

logger = logging.getLogger(__name__)


class ModelArchive:
    """Exists only if the manifest parsed; owns `<temp>/models/<hex>/` until `discard`.

    path:          the directory that workers get, absolute.
    config:        None if the archive has no configuration file, or an empty or unreadable one.
    url:           what the client asked for, word for word.
    file_name:     what finds the archive again in the store (`marName` in a snapshot).
    is_downloaded: the file in the store is there because of this archive.
    warnings:      what is odd about the configuration file, one sentence each.
    """

    __slots__ = (
        "_work_directory",
        "config",
        "file_name",
        "is_downloaded",
        "manifest",
        "path",
        "url",
        "warnings",
    )

    def __init__(
        self,
        path: str,
        work_directory: str,
        *,
        url: str,
        file_name: str,
        is_downloaded: bool = False,
    ) -> None:
        """Read the manifest and the configuration below `path`.

        Raises InvalidModel if the manifest is none; `work_directory` is then the caller's to clear.
        """
        self.path = path
        self._work_directory = work_directory
        self.url = url
        self.file_name = file_name
        self.is_downloaded = is_downloaded
        self.manifest = _read_manifest(path)
        self.config: ModelFileConfig | None
        self.warnings: Sequence[str]
        self.config, self.warnings = _read_config(path, self.manifest.config_file)

    @property
    def handler(self) -> str:
        """The manifest's handler, "" if it names none."""
        return self.manifest.handler

    def has_file(self, name: str) -> bool:
        """Whether there is a file of this name, relative to the archive's root."""
        return os.path.isfile(os.path.join(self.path, name))

    def discard(self) -> None:
        """Remove what was unpacked or linked, never what a link points to. May be called again."""
        remove_work_directory(self._work_directory)

    def __repr__(self) -> str:
        name, version = self.manifest.model_name or "?", self.manifest.model_version
        return f"<ModelArchive {name}/{version} {self.path}>"


def remove_work_directory(path: str) -> None:
    """Blocks. A failure is logged and no more: what hurts is the disk, not the caller's request."""
    try:
        shutil.rmtree(path)  # does not follow links
    except FileNotFoundError:
        pass
    except OSError:
        logger.warning("Cannot remove the unpacked archive %s", path, exc_info=True)


def _read_manifest(directory: str) -> Manifest:
    # Without a manifest the registration has to name everything; the defaults say so.
    content = _read_small(os.path.join(directory, MANIFEST_PATH), MAX_MANIFEST_BYTES)
    return Manifest() if content is None else Manifest.parse(content)


def _read_config(directory: str, name: str) -> tuple[ModelFileConfig | None, Sequence[str]]:
    if not name:
        return None, ()
    try:
        content = _read_small(os.path.join(directory, name), MAX_CONFIG_BYTES)
    except InvalidModel as error:
        return None, (f"{name}: ignored. {error}",)
    if content is None:
        return None, (f"{name}: the manifest names this configuration file, but it is missing.",)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None, (f"{name}: ignored, since it is not UTF-8.",)
    return parse_model_config(text, name)


def _read_small(path: str, max_bytes: int) -> bytes | None:
    """The content of a plain file; None if there is none.

    A directory model is not unpacked by us, so it may hold anything, FIFOs included.
    """
    name = os.path.basename(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # Before the descriptor becomes a file object: Python refuses to wrap a directory.
        is_plain = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidModel(f"{name} cannot be read: {error.strerror}.") from error
    if not is_plain:
        os.close(descriptor)
        raise InvalidModel(f"{name} is not a plain file.")
    with open(descriptor, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise InvalidModel(f"{name} has more than {max_bytes} bytes.")
    return content
