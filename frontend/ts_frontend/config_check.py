"""`torchserve --check-config`: what a start with this command line would use, and what is wrong.

Prints the effective value of every key with the place it comes from, and ends with status 1 if a
start would fail, if a key is not known here or in a model's own configuration, or if a model could
not be loaded. Nothing is started or downloaded, and what is written is gone afterwards.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from ts_frontend import security
from ts_frontend.archive.model_store import ModelStore
from ts_frontend.archive_report import Problem
from ts_frontend.control_plane import models_to_load
from ts_frontend.http.tls import tls_context, tls_files
from ts_frontend.metrics.catalog import CatalogError, read_catalog
from ts_frontend.model_check import check_models
from ts_frontend.settings import ConfigurationError, Settings, load_settings
from ts_frontend.settings.checks import UNKNOWN
from ts_frontend.snapshot import InvalidSnapshot, ModelSnapshot, parse_models

KEY_WIDTH = 44


def check_config(
    argv: Sequence[str],
    environ: Mapping[str, str],
    cwd: str,
    say: Callable[[str], None] = print,
    load: Callable[[Sequence[str], Mapping[str, str], str], Settings] = load_settings,
) -> int:
    """The exit status. say: gets the lines."""
    try:
        settings = load(argv, environ, cwd)
    except ConfigurationError as error:
        for problem in error.problems:
            say(f"error: {problem}")
        say(_sum(len(error.problems), 0))
        return 1
    say(f"Configuration file: {settings.config_file or 'none'}")
    for key, value, origin in settings.effective():
        say(f"{key:<{KEY_WIDTH}} = {value} ({origin})")
    errors = [warning for warning in settings.warnings if UNKNOWN in warning]
    warnings = [warning for warning in settings.warnings if UNKNOWN not in warning]
    errors += _problems(settings)
    for found in _model_problems(settings):
        (errors if found.level == "error" else warnings).append(found.text)
    warnings += security.exposures(settings)
    for text in errors:
        say(f"error: {text}")
    for text in warnings:
        say(f"warning: {text}")
    say(_sum(len(errors), len(warnings)))
    return 1 if errors else 0


def _sum(errors: int, warnings: int) -> str:
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}."


def _problems(settings: Settings) -> Iterator[str]:
    """What would stop the start, or leave the server without something that was asked for."""
    if not settings.model_store:
        yield "Missing mandatory parameter --model-store (or the key model_store)"
    for key in ("model_store", "workflow_store"):
        path = getattr(settings, key)
        if path and not os.path.isdir(path):
            yield f"{key} directory not found: {path} ({settings.origin(key)})"
    for guard in (security.new_tokens, security.new_checksums, _check_tls):
        try:
            guard(settings)
        except ConfigurationError as error:
            yield from error.problems
    try:
        read_catalog(settings.metrics_config)
    except CatalogError as error:
        yield f"{error} (metrics_config in {settings.origin('metrics_config')})"
    if shutil.which(settings.python) is None:
        yield f"no such interpreter: {settings.python} (python in {settings.origin('python')})"
    if settings.model_snapshot:
        try:
            parse_models(settings.model_snapshot)
        except InvalidSnapshot as error:
            yield f"{error} (model_snapshot in {settings.origin('model_snapshot')})"


def _check_tls(settings: Settings) -> None:
    if security.serves_tls(settings):
        with tempfile.TemporaryDirectory(prefix="ts-check-") as folder:
            tls_context(tls_files(settings, folder))


def _model_problems(settings: Settings) -> Sequence[Problem]:
    if not settings.model_store or not os.path.isdir(settings.model_store):
        return []
    if not (settings.model_snapshot or settings.load_models):
        return []
    checksums = None
    with suppress(ConfigurationError):  # which `_problems` has told
        checksums = security.new_checksums(settings)
    try:
        with tempfile.TemporaryDirectory(prefix="ts-check-", dir=settings.temp_dir) as temp_dir:
            store = ModelStore(
                settings.model_store,
                temp_dir,
                settings.allowed_urls,
                limits=security.archive_limits(settings),
                checksums=checksums,
            )
            key, wanted = _wanted_models(settings, store)
            where = f"{key} in {settings.origin(key)}"
            handler = settings.default_service_handler or ""
            return list(check_models(store, wanted, where, handler))
    except OSError as error:
        return [Problem("error", f"The models were not looked at: {error}")]


def _wanted_models(
    settings: Settings, store: ModelStore
) -> tuple[str, Sequence[tuple[str | None, str]]]:
    """The key that says which models a start loads, and their names, if it gives any, and
    locations.
    """
    if settings.model_snapshot:
        models: Sequence[ModelSnapshot] = []
        with suppress(InvalidSnapshot):  # which `_problems` has told
            models = parse_models(settings.model_snapshot)
        return "model_snapshot", [(model.name, model.archive_name) for model in models]
    return "load_models", models_to_load(settings.load_models or "", store)
