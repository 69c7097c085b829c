"""From files anywhere to one archive: first a stage, then the archive made of it.

The stage is a directory that looks like the archive's content but holds links, so that gigabytes of
weights are read once and never copied. Both archivers use it.
"""

from __future__ import annotations

import errno
import glob
import io
import logging
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_WILDCARD = re.compile(r"[*?]|\[.*\]")
SKIPPED_DIRECTORIES = frozenset({"__MACOSX", "__pycache__"})


@contextmanager
def new_stage(name: str) -> Iterator[str]:
    """An empty directory called `name`, in a place of its own: two archivers at once do not meet.

    It stays when the block succeeds; its parent is then the caller's to remove.
    """
    parent = tempfile.mkdtemp(prefix="model-archiver-")
    try:
        stage = os.path.join(parent, name)
        os.mkdir(stage)
        yield stage
    except BaseException:
        shutil.rmtree(parent, ignore_errors=True)
        raise


def stage_file(path: str, stage: str) -> None:
    """Put a file into the stage under its own name, in place of one that has it already.

    Raises FileNotFoundError or IsADirectoryError.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    target = os.path.join(stage, os.path.basename(path))
    if os.path.lexists(target):
        if not os.path.samefile(path, target):
            logger.warning("%s replaces another file of that name in the archive.", path)
        os.unlink(target)
    try:
        os.symlink(os.path.realpath(path), target)
    except OSError:  # no links on this file system, or not for this user
        shutil.copy2(path, target)


def stage_extra_files(extra_files: str, stage: str) -> None:
    """Stage a comma-separated list of paths; of a directory the content.

    Raises FileNotFoundError for a plain path that does not exist, ValueError for what is neither a
    file nor a directory, FileExistsError if two directories bring the same sub-directory.
    """
    for segment in filter(None, (part.strip() for part in extra_files.split(","))):
        paths = sorted(glob.glob(segment))
        if not paths and _WILDCARD.search(segment) and not os.path.exists(segment):
            logger.warning("Given wildcard pattern did not match any file: %s", segment)
        elif not os.path.exists(segment) and not paths:
            raise FileNotFoundError(f"File does not exist: {segment}")
        # A name such as `a[1].txt` is a pattern that does not match itself.
        for path in paths or ([segment] if os.path.exists(segment) else []):
            _stage_extra(path, stage)


def _stage_extra(path: str, stage: str) -> None:
    if os.path.isfile(path):
        stage_file(path, stage)
    elif os.path.isdir(path):
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            if entry.is_dir():
                shutil.copytree(entry.path, os.path.join(stage, entry.name), copy_function=_link)
            else:
                stage_file(entry.path, stage)
    else:
        raise ValueError(f"Invalid extra file given {path}")


def _link(source: str, target: str) -> None:
    stage_file(source, os.path.dirname(target))


def is_wanted_directory(name: str) -> bool:
    return name not in SKIPPED_DIRECTORIES and not name.startswith(".")


def walk_files(directory: str) -> Iterator[tuple[str, str]]:
    """(path, name in the archive) of every file that an archive takes, always in the same order."""
    for folder, directories, files in os.walk(directory):
        directories[:] = sorted(filter(is_wanted_directory, directories))
        for name in sorted(files):
            path = os.path.join(folder, name)
            yield path, os.path.relpath(path, directory).replace(os.sep, "/")


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """A path to write to, which becomes `path` when that went well: no half archive, ever."""
    descriptor, partial = tempfile.mkstemp(
        prefix=f".{os.path.basename(path)}.", suffix=".part", dir=os.path.dirname(path) or "."
    )
    os.close(descriptor)
    try:
        yield partial
        os.chmod(partial, 0o666 & ~_umask())  # mkstemp's file is for its owner only
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def add_to_zip(archive: zipfile.ZipFile, directory: str) -> None:
    for path, name in walk_files(directory):
        archive.write(path, name)


def add_to_tar(archive: tarfile.TarFile, directory: str, below: str) -> None:
    """below: the folder of the archive that gets everything; readers drop it."""
    archive.dereference = True  # a stage holds links
    for path, name in walk_files(directory):
        archive.add(path, f"{below}/{name}", recursive=False, filter=_without_owner)


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Who built the archive is nobody's business, and differs from machine to machine."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def write_zip(path: str, directory: str, manifest_name: str, manifest: str, method: int) -> None:
    # strict_timestamps: files dated before 1980, as reproducible builds make them, are no error.
    with (
        replacing(path) as partial,
        zipfile.ZipFile(partial, "w", method, strict_timestamps=False) as archive,
    ):
        add_to_zip(archive, directory)
        archive.writestr(manifest_name, manifest)


def write_tar_gz(path: str, directory: str, below: str, manifest_name: str, manifest: str) -> None:
    with (
        replacing(path) as partial,
        tarfile.open(partial, "w:gz") as archive,
    ):
        add_to_tar(archive, directory, below)
        content = manifest.encode("utf-8")
        entry = tarfile.TarInfo(f"{below}/{manifest_name}")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def write_directory(
    path: str, directory: str, manifest_name: str | None = None, manifest: str = ""
) -> None:
    """Copy the content to `path`; what lies there already stays, unless a file replaces it."""
    for source, name in walk_files(directory):
        target = os.path.join(path, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy2(source, target)
    if manifest_name is not None:
        target = os.path.join(path, manifest_name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w", encoding="utf-8") as file:
            file.write(manifest)
