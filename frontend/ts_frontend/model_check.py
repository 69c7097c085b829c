"""What a start would find wrong with the archives that it loads.

Each is opened by the server's own reader (`archive.model_store`), so limits, refusals and words are
the same. Nothing in it is run, nothing is downloaded, and what was unpacked is gone afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ts_frontend.archive.manifest import MANIFEST_PATH, Manifest
from ts_frontend.archive.model_archive import ModelArchive
from ts_frontend.archive.model_config import Note
from ts_frontend.archive.model_store import ModelStore, default_name
from ts_frontend.archive.self_test import read_self_test
from ts_frontend.archive_report import Problem, what_a_worker_misses
from ts_frontend.core.errors import ModelConflict, ServingError


def check_models(
    store: ModelStore,
    wanted: Iterable[tuple[str | None, str]],
    where: str,
    default_handler: str = "",
) -> Iterator[Problem]:
    """The problems of each model, in the order of a start.

    An error is what keeps a model, or a value that its configuration states, from being used.

    wanted: name (None: the archive's own) and location of each.
    where:  what names them, for the problems that can be solved there.
    """
    manifests: dict[str, Manifest | None] = {}  # location -> None if it cannot be opened
    taken: set[tuple[str, str]] = set()
    for name, location in wanted:
        if "://" in location:
            continue
        shown = location if location.isprintable() else ascii(location)
        if location not in manifests:
            manifests[location], problems = _look(store, location, shown, where, default_handler)
            yield from problems
        if (manifest := manifests[location]) is not None:
            id = name or manifest.model_name or default_name(location), manifest.model_version
            if id in taken:
                yield Problem("error", f"{shown}: {ModelConflict.of(*id)} ({where})")
            taken.add(id)


def _look(
    store: ModelStore, location: str, shown: str, where: str, default_handler: str
) -> tuple[Manifest | None, list[Problem]]:
    if not store.has(location):
        return None, [Problem("warning", f"Model not found at: {shown} ({where})")]
    try:
        archive = store.look_blocking(location)
    except ServingError as error:
        return None, [Problem("error", f"{shown}: {error} ({where})")]
    except OSError as error:
        return None, [Problem("error", f"{shown}: {error.strerror or error} ({where})")]
    try:
        problems = [*_mistakes(archive), *_what_is_missing(archive, default_handler)]
    finally:
        store.release_blocking(archive)
    return archive.manifest, [
        Problem(problem.level, f"{shown}: {problem.text}") for problem in problems
    ]


def _mistakes(archive: ModelArchive) -> Iterator[Problem]:
    """In the configuration file."""
    for warning in archive.warnings:
        yield Problem("warning" if isinstance(warning, Note) else "error", warning)
    config, file_name = archive.config, archive.manifest.config_file
    if config is None:
        return
    low, high = config.min_workers, config.max_workers
    if low and high and high < low:
        text = f"minWorkers {low} is above maxWorkers {high}; neither is used."
        yield Problem("error", f"{file_name}: {text}")
    if config.warm_up is not None:
        mistake = read_self_test(archive.path, config.warm_up).mistake
        if mistake:
            yield Problem("error", f"{file_name}: {mistake}")


def _what_is_missing(archive: ModelArchive, default_handler: str) -> Iterator[Problem]:
    if not (archive.handler or default_handler):
        what = "The manifest names no handler"
        if not archive.has_file(MANIFEST_PATH):
            what = f"There is no {MANIFEST_PATH}"
        yield Problem("error", f"{what}, and no default_service_handler stands in.")
    file_name = archive.handler.partition(":")[0]
    # Without the suffix it may be a default handler or a module of an installed package.
    if file_name.endswith(".py") and not any(
        map(archive.has_file, (file_name, os.path.basename(file_name)))
    ):
        yield Problem("error", f"The manifest's handler {file_name} is not in the archive.")
    yield from what_a_worker_misses(archive)
