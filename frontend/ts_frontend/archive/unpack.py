"""Unpack a zip (.mar) or tar.gz into a directory, after judging all of it.

An archive is hostile until shown otherwise. So it is read twice: first its table of contents, which
is checked as a whole (`check_entries`) before a byte is written; then its data, counted while it is
written, since declared sizes may lie. Whatever goes wrong, the target directory is gone afterwards.

`unpack` is the entry point. It blocks, and runs in a thread of the model store.
"""

from __future__ import annotations

import errno
import gzip
import io
import math
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, Protocol

import msgspec

from ts_frontend.core.errors import ArchiveStorageFailed, InvalidModel

_CHUNK_BYTES = 256 << 10
_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


class ArchiveLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive may ask of this server's disk and memory.

    max_entries: files and directories; a bundled Python environment has some 15,000.
    max_bytes:   unpacked size; the disk's free space limits it too.
    max_ratio:   unpacked size over archive size, from `ratio_free_bytes` on. Weights compress a few
                 times, a bomb a thousand times; small archives may hold tensors of zeros.
    """

    max_entries: int = 50_000
    max_bytes: int = 512 << 30
    max_ratio: int = 200
    ratio_free_bytes: int = 64 << 20
    max_name_bytes: int = 1024
    max_depth: int = 64


class Entry(NamedTuple):
    path: str  # relative to the target, without "." and empty components
    is_directory: bool
    size: int  # bytes, as declared
    source: Any  # what the reader needs to find the data again


class _Reader(Protocol):
    def entries(self) -> Iterator[Entry]: ...

    def open(self, entry: Entry) -> IO[bytes]: ...


def unpack(
    source: str,
    target: str,
    limits: ArchiveLimits,
    check_cancelled: Callable[[], None],
    *,
    kept_bytes: float = math.inf,
) -> None:
    """Unpack the file `source` into the new directory `target`.

    check_cancelled: called between chunks; what it raises ends the work.
    kept_bytes: larger files are read and judged like all, but left as holes of their size.
    Raises InvalidModel if the archive is damaged, hostile or no archive, ArchiveStorageFailed if
    the disk has no room. Then, and on every other failure, `target` does not exist.
    """
    with open(source, "rb") as file:
        archive_bytes = os.fstat(file.fileno()).st_size
        with _damage_refused(), _open_reader(file, archive_bytes, limits) as reader:
            entries = check_entries(reader.entries(), archive_bytes, limits, check_cancelled)
            needed_bytes = sum(entry.size for entry in entries if entry.size <= kept_bytes)
            _check_disk(os.path.dirname(target), needed_bytes)
            try:
                os.mkdir(target, 0o700)
                for entry in entries:
                    _write(reader, entry, target, check_cancelled, entry.size > kept_bytes)
            except BaseException:
                shutil.rmtree(target, ignore_errors=True)
                raise


def check_entries(
    entries: Iterable[Entry],
    archive_bytes: int,
    limits: ArchiveLimits,
    check_cancelled: Callable[[], None] = lambda: None,
) -> list[Entry]:
    """All entries, if together they fit the limits and none is in the way of another."""
    checked: list[Entry] = []
    # Folded path -> (path, is_directory), with every parent: on a file system that ignores case, or
    # with a handler that does, `A` and `a` would be one file.
    seen: dict[str, tuple[str, bool]] = {}
    total = 0
    for entry in entries:
        check_cancelled()
        if len(checked) >= limits.max_entries:
            raise InvalidModel(f"The archive has more than {limits.max_entries} entries.")
        _check_size(entry, total := total + entry.size, archive_bytes, limits)
        _check_clash(entry, seen)
        checked.append(entry)
    return checked


def _check_size(entry: Entry, total: int, archive_bytes: int, limits: ArchiveLimits) -> None:
    if entry.size < 0:
        raise InvalidModel(f"The archive's entry {_show(entry.path)} has a negative size.")
    if total > limits.max_bytes:
        raise InvalidModel(f"The archive unpacks to more than {limits.max_bytes} bytes.")
    if total > limits.ratio_free_bytes and total > limits.max_ratio * archive_bytes:
        raise InvalidModel(
            f"The archive unpacks to more than {limits.max_ratio} times its size"
            f" ({archive_bytes} bytes)."
        )


def _check_clash(entry: Entry, seen: dict[str, tuple[str, bool]]) -> None:
    components = entry.path.split("/")
    for depth in range(1, len(components) + 1):
        path = "/".join(components[:depth])
        is_directory = entry.is_directory or depth < len(components)
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        known = seen.get(folded)
        if known is None:
            seen[folded] = (path, is_directory)
        elif known != (path, is_directory) or not is_directory:
            raise InvalidModel(
                f"The archive's entries {_show(known[0])} and {_show(path)} stand for one file."
            )


def check_name(name: str, limits: ArchiveLimits) -> str:
    """The entry's path below the target, "" for the target itself.

    Raises InvalidModel for a name that leads out of the archive or that some system reads so.
    """
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidModel(f"The archive's entry {_show(name)} has a name not in UTF-8.") from error
    components = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or _DRIVE.match(name) or ".." in components or "\\" in name:
        # The contract's words, which people search for.
        raise InvalidModel(f"Detected Zip Slip vulnerability: {_show(name)}")
    if not name or _CONTROL_CHARACTER.search(name):
        raise InvalidModel(f"The archive has an entry with an unusable name: {_show(name)}.")
    if (
        length > limits.max_name_bytes
        or len(components) > limits.max_depth
        or any(len(part.encode("utf-8")) > 255 for part in components)
    ):
        raise InvalidModel(f"The archive has an entry with too long a name: {_show(name)}.")
    return "/".join(components)


def _check_disk(directory: str, needed_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed_bytes > free:
        raise ArchiveStorageFailed(
            f"The archive needs {needed_bytes} bytes of disk, {free} are free."
        )


def _write(
    reader: _Reader,
    entry: Entry,
    target: str,
    check_cancelled: Callable[[], None],
    is_hole: bool,
) -> None:
    path = os.path.join(target, *entry.path.split("/"))
    os.makedirs(path if entry.is_directory else os.path.dirname(path), exist_ok=True)
    if entry.is_directory:
        return
    # O_EXCL and O_NOFOLLOW: nothing is overwritten or followed even if a check above has a hole.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    written = 0
    with reader.open(entry) as content, open(os.open(path, flags, 0o644), "wb") as file:
        while chunk := content.read(min(_CHUNK_BYTES, entry.size - written + 1)):
            check_cancelled()
            written += len(chunk)
            if written > entry.size:
                break
            if not is_hole:
                file.write(chunk)
        if is_hole:
            file.truncate(entry.size)
    if written != entry.size:
        raise InvalidModel(f"The archive's entry {_show(entry.path)} lies about its size.")


@contextmanager
def _damage_refused() -> Iterator[None]:
    """Turn what the decoders say of broken input into InvalidModel; errors of the disk pass."""
    try:
        yield
    except (InvalidModel, OSError) as error:
        # The first is an OSError by descent only; the second is a seek to an impossible place.
        if isinstance(error, gzip.BadGzipFile) or (
            isinstance(error, OSError) and error.errno == errno.EINVAL
        ):
            raise InvalidModel(f"The archive is damaged: {error}.") from error
        raise
    except RecursionError as error:  # a chain of extended tar headers
        raise InvalidModel("The archive is damaged: headers of headers without end.") from error
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        struct.error,
        ValueError,
        LookupError,
        OverflowError,
        NotImplementedError,
    ) as error:
        raise InvalidModel(f"The archive is damaged: {_show(str(error))}.") from error


@contextmanager
def _open_reader(file: IO[bytes], size: int, limits: ArchiveLimits) -> Iterator[_Reader]:
    # By content, not by name: a zip called .model or a tar.gz called .mar is no riddle.
    magic = file.read(4)
    file.seek(0)
    if magic in (b"PK\x03\x04", b"PK\x05\x06"):
        _count_zip_entries(file, size, limits)
        with zipfile.ZipFile(file) as zip_file:
            yield _ZipReader(zip_file, limits)
    elif magic.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
            bounded = _BoundedReads(unzipped)
            # A BufferedReader would hide the sizes that are asked for.
            with tarfile.open(fileobj=bounded, mode="r:") as tar:
                yield _TarReader(tar, bounded, limits)
    elif size == 0:
        raise InvalidModel("The archive is an empty file.")
    else:
        raise InvalidModel("The file is no model archive: neither zip (.mar) nor tar.gz.")


# --- zip ------------------------------------------------------------------------------------------

_END_RECORD = struct.Struct("<4s4H2LH")
_END_RECORD_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64_BYTES = 20
_DIRECTORY_RECORD_BYTES = 46


def _count_zip_entries(file: IO[bytes], size: int, limits: ArchiveLimits) -> None:
    """Refuse too many entries before zipfile makes an object of each, of 500 bytes and more.

    Finds the directory in the way zipfile does; a file it cannot make sense of is left to zipfile.
    """
    tail_start = max(0, size - _END_RECORD.size - 0xFFFF)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END_RECORD.size > len(tail):
        raise InvalidModel("The archive is damaged: its directory is missing, as if cut short.")
    directory_bytes = _END_RECORD.unpack_from(tail, at)[5]
    directory_end = tail_start + at
    locator = at - _LOCATOR_64_BYTES
    record_64 = locator - _END_RECORD_64.size
    if record_64 >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        directory_bytes = _END_RECORD_64.unpack_from(tail, record_64)[8]
        directory_end = tail_start + record_64
    if directory_bytes > limits.max_entries * 512 or directory_bytes > directory_end:
        raise InvalidModel(
            f"The archive has more than {limits.max_entries} entries, or a damaged directory."
        )
    file.seek(directory_end - directory_bytes)
    directory = file.read(directory_bytes)
    file.seek(0)
    count = 0
    at = 0
    while at + _DIRECTORY_RECORD_BYTES <= len(directory):
        count += 1
        if count > limits.max_entries:
            raise InvalidModel(f"The archive has more than {limits.max_entries} entries.")
        at += _DIRECTORY_RECORD_BYTES + sum(struct.unpack_from("<3H", directory, at + 28))


class _ZipReader:
    def __init__(self, zip_file: zipfile.ZipFile, limits: ArchiveLimits) -> None:
        self._zip = zip_file
        self._limits = limits

    def entries(self) -> Iterator[Entry]:
        for info in self._zip.infolist():
            # orig_filename: `filename` is already cut at a NUL.
            name = info.orig_filename
            path = check_name(name, self._limits)
            is_directory = name.endswith("/")
            # The upper half is the Unix mode, and 0 where the archive was made elsewhere.
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InvalidModel(
                    f"The archive's entry {_show(name)} is neither a file nor a directory."
                )
            if info.flag_bits & 0x1:
                raise InvalidModel(f"The archive's entry {_show(name)} is encrypted.")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InvalidModel(
                    f"The archive's entry {_show(name)} uses compression method"
                    f" {info.compress_type}; only stored and deflated entries are read."
                )
            if is_directory and info.file_size:
                raise InvalidModel(f"The archive's directory {_show(name)} has content.")
            if path:
                yield Entry(path, is_directory, info.file_size, info)

    def open(self, entry: Entry) -> IO[bytes]:
        return self._zip.open(entry.source)


# --- tar.gz ---------------------------------------------------------------------------------------

_MAX_READ_BYTES = 1 << 20  # an extended header, or one of our chunks
_MAX_PADDING_BYTES = 1 << 20  # zeros after the end of a tar; writers fill up to 10 KiB


class _BoundedReads(io.RawIOBase):
    """The unzipped tar, without the huge reads that a forged header makes tarfile ask for."""

    def __init__(self, unzipped: gzip.GzipFile) -> None:
        self._unzipped = unzipped

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _MAX_READ_BYTES:
            raise InvalidModel("The archive is damaged: an extended header of unlikely size.")
        return self._unzipped.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._unzipped.seek(offset, whence)

    def tell(self) -> int:
        return self._unzipped.tell()


class _TarReader:
    def __init__(
        self, tar: tarfile.TarFile, unzipped: _BoundedReads, limits: ArchiveLimits
    ) -> None:
        self._tar = tar
        self._unzipped = unzipped
        self._limits = limits

    def entries(self) -> Iterator[Entry]:
        for member in self._tar:
            name = member.name
            check_name(name, self._limits)
            # Also a sparse file: its holes unpack to any size.
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise InvalidModel(
                    f"The archive's entry {_show(name)} is neither a plain file nor a directory."
                )
            # The archiver puts everything below <model name>/. A file outside any folder stays.
            _, slash, rest = name.partition("/")
            path = check_name(rest, self._limits) if rest else ""
            if not slash and not member.isdir():
                path = name
            if path:
                yield Entry(path, member.isdir(), 0 if member.isdir() else member.size, member)
        self._check_end()

    def open(self, entry: Entry) -> IO[bytes]:
        content = self._tar.extractfile(entry.source)
        assert content is not None  # noqa: S101  # only links and devices have none
        return content

    def _check_end(self) -> None:
        """Only zeros may follow: tarfile takes a broken header for the end, silently.

        Reading on to the end also makes gzip compare its checksum.
        """
        self._unzipped.seek(self._tar.offset)
        padding = 0
        while chunk := self._unzipped.read(_CHUNK_BYTES):
            padding += len(chunk)
            if chunk.strip(b"\0") or padding > _MAX_PADDING_BYTES:
                raise InvalidModel("The archive is damaged: a header inside it is broken.")


def _show(text: str) -> str:
    """Text out of an archive for a message: printable, and not long."""
    shown = text if len(text) <= 200 else text[:197] + "..."
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
