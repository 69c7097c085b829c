"""Where model archives may come from: the store's directory, other directories, allowed URLs.

`ModelStore.open` turns a location into a `ModelArchive`. It changes the disk in two places, and
leaves both as they were when it fails or is cancelled: `<temp>/models/<hex>/` for one archive's
files, and in the store the downloaded file, which has a hidden name until it is complete and was
accepted.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from ts_frontend.archive.checksums import ChecksumList
from ts_frontend.archive.fetch import (
    CancelToken,
    Fetcher,
    FetchSettings,
    UrlRules,
    redact,
    split_checksum,
)
from ts_frontend.archive.manifest import MAX_MANIFEST_BYTES
from ts_frontend.archive.model_archive import ModelArchive, remove_work_directory
from ts_frontend.archive.model_config import MAX_CONFIG_BYTES
from ts_frontend.archive.unpack import ArchiveLimits, unpack
from ts_frontend.core.errors import (
    ArchiveDownloadFailed,
    ArchiveStorageFailed,
    ErrorKind,
    InvalidModel,
    ModelNotFound,
)

logger = logging.getLogger(__name__)

# What is looked at in an archive is no larger.
KEPT_BYTES = max(MAX_MANIFEST_BYTES, MAX_CONFIG_BYTES)
DEFAULT_ALLOWED_URLS = ("file://.*|http(s)?://.*",)

_URL_SCHEME = re.compile(r"(file|https?)://", re.IGNORECASE)
_ANY_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# Slow downloads hold a thread each and must not keep local archives from being opened.
_THREADS = 8


class ModelStore:
    """Opens archives, and knows what opening them has put on the disk.

    directory: the model store, None if the server has none.
    temp_dir: exists; `models/` below it is the store's.
    allowed_urls: patterns that a URL to download has to match as a whole, in any case.
    checksums: only what it lists is opened; None: everything.
    is_taken_name_a_conflict: a download whose name is taken is refused as the client's fault; else
        as a failure of the server, like TorchServe.
    resolve: (host, port) -> addresses; for tests.
    """

    def __init__(
        self,
        directory: str | None,
        temp_dir: str,
        allowed_urls: Sequence[str] = DEFAULT_ALLOWED_URLS,
        *,
        limits: ArchiveLimits | None = None,
        fetch: FetchSettings | None = None,
        checksums: ChecksumList | None = None,
        is_taken_name_a_conflict: bool = True,
        resolve: Callable[[str, int], Sequence[str]] | None = None,
    ) -> None:
        """Raises ValueError for a pattern that is no regular expression."""
        self._directory = os.path.abspath(directory) if directory else None
        self._models_dir = os.path.join(os.path.abspath(temp_dir), "models")
        self._rules = UrlRules(allowed_urls)
        self._limits = limits or ArchiveLimits()
        self._checksums = checksums
        self._taken_kind = ErrorKind.CONFLICT if is_taken_name_a_conflict else ErrorKind.INTERNAL
        self._fetcher = Fetcher(self._rules, fetch or FetchSettings(), resolve)
        # How the names of our work directories begin, so that they can be found if we are killed.
        self.work_prefix = ""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="model-store")
        # Names in the store that a download is about to take; guarded by the lock, since every open
        # runs in a thread of its own.
        self._lock = threading.Lock()
        self._reserved: set[str] = set()

    async def open(self, url: str, *, s3_sse_kms: bool = False) -> ModelArchive:
        """The archive at `url`: a name or a directory, in the store or not, or a URL to download.

        Raises ModelNotFound if the location is refused or nothing is there; ArchiveDownloadFailed;
        InvalidModel; ArchiveStorageFailed if the store or the disk cannot take it.
        """
        self._check_location(url)
        token = CancelToken()
        future = asyncio.get_running_loop().run_in_executor(
            self._threads, self._open_blocking, url, token, s3_sse_kms
        )
        try:
            archive = await asyncio.shield(future)
        except asyncio.CancelledError:
            token.cancel()
            await self._wait_abandoned(future)
            raise
        for warning in archive.warnings:
            logger.warning("Model configuration of %s: %s", _shown(url), warning)
        return archive

    def look_blocking(self, name: str) -> ModelArchive:
        """A local archive as `open` would find and refuse it, for a look at its small files.

        All of it is read, but a file of more than KEPT_BYTES becomes a hole, which takes no disk.
        The caller releases it, and reports its warnings. Raises as `open`; OSError if the archive
        or the disk fails.
        """
        self._check_location(name)
        if _ANY_SCHEME.match(name):
            raise ModelNotFound(f"Archives elsewhere are not looked at: {_shown(name)}")
        self._make_models_dir()
        return self._open_local(name, CancelToken(), kept_bytes=KEPT_BYTES)

    async def release(self, archive: ModelArchive) -> None:
        """Remove an archive's files below the temporary directory, and the file it downloaded."""
        future = asyncio.get_running_loop().run_in_executor(
            self._threads, self.release_blocking, archive
        )
        await asyncio.shield(future)  # once begun, it ends, whoever still waits

    def release_blocking(self, archive: ModelArchive) -> None:
        """`release` for where no event loop runs (any more)."""
        archive.discard()
        if archive.is_downloaded and self._directory is not None:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._directory, archive.file_name))

    def list_all(self) -> list[str]:
        """The names that `load_models=all` stands for, sorted; blocks for one directory listing."""
        if self._directory is None:
            return []
        with os.scandir(self._directory) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and (entry.is_dir() or entry.name.endswith((".mar", ".model", ".tar.gz")))
            )

    def has(self, name: str) -> bool:
        """Whether `open` would find this name or path; blocks for a few looks at the disk."""
        return self._directory is not None and bool(name) and self._find(name) is not None

    def _check_location(self, url: str) -> None:
        """The contract's refusals, in its order; all of them before anything is touched."""
        if self._directory is None:
            raise ModelNotFound("Model store has not been configured.")
        if not url:
            raise ModelNotFound("empty url")
        if _NOT_TEXT.search(url):  # neither a name nor fit for a log or an answer
            raise ModelNotFound(f"Model not found at: {_shown(url)!a}")
        shown = _shown(url)
        if ".." in url:
            raise ModelNotFound(f"Relative path is not allowed in url: {shown}")
        location = split_checksum(url)[0]
        if _URL_SCHEME.match(url) and not self._rules.is_allowed(location):
            raise ModelNotFound(f"Given URL {shown} does not match any allowed URL(s)")

    def _open_blocking(self, url: str, token: CancelToken, s3_sse_kms: bool) -> ModelArchive:
        is_url = _ANY_SCHEME.match(url) is not None
        try:
            self._make_models_dir()
            if is_url and (_URL_SCHEME.match(url) or self._rules.is_allowed(url)):
                return self._open_download(url, token, s3_sse_kms)
            return self._open_local(url, token)
        except OSError as error:
            logger.warning("Cannot keep the model archive %s", _shown(url), exc_info=True)
            raise ArchiveStorageFailed(f"Failed to save model: {_shown(url)}") from error

    def _make_models_dir(self) -> None:
        """Raises OSError, and ArchiveStorageFailed if it is another user's.

        In a folder that all users share anybody may have been first with the name, and whoever owns
        the directory can exchange the code in it between our checks and the worker's start.
        """
        os.makedirs(self._models_dir, mode=0o700, exist_ok=True)
        trusted = (0, os.geteuid())
        found = os.lstat(self._models_dir), os.stat(self._models_dir)  # a link has an owner, too
        if any(status.st_uid not in trusted for status in found):
            raise ArchiveStorageFailed(
                f"{self._models_dir} belongs to another user, who could exchange what is unpacked "
                "there; set TEMP to a directory of the server's own."
            )

    def _open_local(
        self, url: str, token: CancelToken, kept_bytes: float = math.inf
    ) -> ModelArchive:
        found = self._find(url)
        if found is None:
            raise ModelNotFound(f"Model not found at: {_shown(url)}")
        path, file_name = found
        if os.path.isdir(path):
            if self._checksums is not None:
                raise InvalidModel(
                    f"{file_name} is a folder; archive_checksums lets in archives of one file only."
                )
            return self._link(path, url, file_name)
        return self._unpack(path, token, url, file_name, kept_bytes=kept_bytes)

    def _find(self, url: str) -> tuple[str, str] | None:
        """Where a plain name or path leads, and the name that will find it again."""
        assert self._directory is not None  # noqa: S101  # _check_location
        relative = "" if os.path.isabs(url) else os.path.normpath(url)
        base_name = os.path.basename(url.rstrip("/"))
        # The contract looks for the last component only; a file in a folder of the store, which
        # TorchServe cannot name, goes before that.
        for name in filter(None, (relative, base_name)):
            path = os.path.join(self._directory, name)
            if os.path.isfile(path):
                return path, name
        if os.path.isdir(url):
            path = os.path.abspath(url)
            in_store = os.path.join(self._directory, base_name) == path
            return path, base_name if in_store else path
        for name in filter(None, (relative, base_name)):
            path = os.path.join(self._directory, name)
            if os.path.isdir(path) and not os.path.samefile(path, self._directory):
                return path, name
        return None

    def _link(self, path: str, url: str, file_name: str) -> ModelArchive:
        """A directory is served where it lies, through a link that is ours to remove."""
        with os.scandir(path) as entries:
            found = list(itertools.islice(entries, 2))
        # An archive of nothing but a manifest is no folder around an archive.
        if len(found) == 1 and found[0].is_dir() and found[0].name != "MAR-INF":
            path = found[0].path
        with self._work_directory() as directory:
            link = os.path.join(directory, os.path.basename(path) or "model")
            os.symlink(os.path.abspath(path), link)
            return ModelArchive(link, directory, url=url, file_name=file_name)

    def _unpack(
        self,
        path: str,
        token: CancelToken,
        url: str,
        file_name: str,
        *,
        is_downloaded: bool = False,
        kept_bytes: float = math.inf,
    ) -> ModelArchive:
        target = self._new_work_path()
        with self._verified(path, file_name, token) as verified:
            unpack(verified, target, self._limits, token.check, kept_bytes=kept_bytes)
        try:
            token.check()
            return ModelArchive(
                target, target, url=url, file_name=file_name, is_downloaded=is_downloaded
            )
        except BaseException:
            remove_work_directory(target)
            raise

    @contextmanager
    def _verified(self, path: str, file_name: str, token: CancelToken) -> Iterator[str]:
        """What to unpack: the archive itself, or a copy that was compared with the list."""
        if self._checksums is None:
            yield path
            return
        folder = self._new_work_path()
        os.mkdir(folder, 0o700)
        try:
            copy = os.path.join(folder, "archive")
            self._checksums.copy_verified(path, file_name, copy, token.check)
            yield copy
        finally:
            remove_work_directory(folder)

    def _open_download(self, url: str, token: CancelToken, s3_sse_kms: bool) -> ModelArchive:
        assert self._directory is not None  # noqa: S101  # _check_location
        name = _download_name(url)
        target = os.path.join(self._directory, name)
        with self._name_reserved(name):
            if os.path.lexists(target):
                raise self._name_taken(name)
            partial = os.path.join(self._directory, f".{secrets.token_hex(16)}.part")
            self._fetcher.fetch(url, partial, token, s3_sse_kms=s3_sse_kms)
            try:
                # Judged before it gets its name, so that a refused archive was never in the store.
                archive = self._unpack(partial, token, url, name, is_downloaded=True)
                try:
                    self._give_name(partial, target, name)
                except BaseException:
                    archive.discard()
                    raise
                return archive
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(partial)

    def _name_taken(self, name: str) -> ArchiveStorageFailed:
        return ArchiveStorageFailed(f"Model file already exists {name}", self._taken_kind)

    def _give_name(self, partial: str, target: str, name: str) -> None:
        """Move the complete file to its name, unless somebody else took the name meanwhile."""
        try:
            os.link(partial, target)
        except FileExistsError as error:
            raise self._name_taken(name) from error
        except OSError:
            # Some network file systems have no hard links; then a small race is left to luck.
            if os.path.lexists(target):
                raise self._name_taken(name) from None
            os.rename(partial, target)

    @contextmanager
    def _name_reserved(self, name: str) -> Iterator[None]:
        with self._lock:
            if name in self._reserved:
                raise self._name_taken(name)
            self._reserved.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._reserved.discard(name)

    def _new_work_path(self) -> str:
        name = (self.work_prefix + secrets.token_hex(16))[:32]
        return os.path.join(self._models_dir, name)

    @contextmanager
    def _work_directory(self) -> Iterator[str]:
        path = self._new_work_path()
        os.mkdir(path, 0o700)
        try:
            yield path
        except BaseException:
            remove_work_directory(path)
            raise

    async def _wait_abandoned(self, future: asyncio.Future[ModelArchive]) -> None:
        """Until the thread has cleaned up, or has finished after all and we do."""
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled() and future.exception() is None:
            self.release_blocking(future.result())


def default_name(location: str) -> str:
    """The name of a model loaded at start that neither its manifest nor the setting names."""
    name = location.rpartition("/")[2]
    if ".mar" in name or ".model" in name:
        name = name.rpartition(".")[0]
    return re.sub(r"^_|[^A-Za-z0-9_]", "_", name)


def _download_name(url: str) -> str:
    """The name a download gets in the store: the last component of the URL's path."""
    rest = split_checksum(url)[0].partition("?")[0].partition("://")[2]
    name = rest.partition("/")[2].rpartition("/")[2]
    if not name or "\\" in name or name.startswith(".") or len(os.fsencode(name)) > 255:
        raise ArchiveDownloadFailed(
            f"Failed to download archive from: {redact(url)} (its path ends in no file name)"
        )
    return name


def _shown(url: str) -> str:
    """A location for a message; a plain path has no credentials to hide."""
    return redact(url) if _ANY_SCHEME.match(url) else url
