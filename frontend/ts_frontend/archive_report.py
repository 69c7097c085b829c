"""`torch-model-archiver inspect` and `verify`: what an archive holds, and whether it can be served.

The archive is opened the way the server opens it (`archive.model_store`), so what passes here is
what the server takes: the same limits, the same refusals, the same reading of manifest and
configuration. What the server unpacks into its temporary folder goes into one that is removed.

`verify` also imports the handler, in a process of its own that is given a worker's paths and a
deadline. Nothing of the handler is called.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ts_frontend.archive.manifest import MANIFEST_PATH, Manifest
from ts_frontend.archive.model_archive import ModelArchive
from ts_frontend.archive.model_config import stated_values
from ts_frontend.archive.model_store import ModelStore
from ts_frontend.core.errors import ServingError

IMPORT_TIMEOUT_S = 60.0  # importing torch from a cold disk takes ten
_CHUNK_BYTES = 1 << 20
# The default handlers that load the archive's model, and the files that they load without a class.
_DEFAULT_HANDLERS = (
    *("base_handler", "image_classifier", "object_detector", "image_segmenter"),
    "text_classifier",
)
_COMPLETE_MODELS = (".pt", ".pt2", ".onnx", ".so")
_NO_LINES: tuple[str, ...] = ()
# The package `ts` beside this one, whatever of that name the archive holds.
_CHECK = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from ts.handler_check import main
del sys.path[0]
main()
"""


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    name: str  # below the archive's root, with slashes
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Problem:
    """`error`: the server refuses the archive or no worker can load it. `warning`: it is served,
    but something in it has no effect or is missing.
    """

    level: str
    text: str
    details: Sequence[str] = _NO_LINES


@dataclass(slots=True)
class ArchiveReport:
    """What is known of one archive. A refused one has neither manifest nor files.

    format: "zip", "tar.gz", "directory" or "unknown". sha256: of the file, "" for a directory.
    config: the configuration file's keys that the server reads, with the values it takes.
    handler: what the handler's module was found to offer, "" if it was not imported.
    """

    path: str
    format: str = "unknown"
    bytes: int = 0
    sha256: str = ""
    manifest: Manifest | None = None
    config: dict[str, Any] = field(default_factory=dict)
    files: list[ArchivedFile] = field(default_factory=list)
    handler: str = ""
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        return not any(problem.level == "error" for problem in self.problems)

    def error(self, text: str, details: Sequence[str] = _NO_LINES) -> None:
        self.problems.append(Problem("error", text, details))

    def warn(self, text: str) -> None:
        self.problems.append(Problem("warning", text))

    def to_json(self) -> dict[str, Any]:
        """For scripts: the keys are part of the interface."""
        manifest = self.manifest
        return {
            "path": self.path,
            "format": self.format,
            "bytes": self.bytes,
            "sha256": self.sha256 or None,
            "manifest": None if manifest is None else _manifest_entries(manifest),
            "config": self.config,
            "files": [msgspec.to_builtins(each) for each in self.files],
            "handler": self.handler or None,
            "problems": [msgspec.to_builtins(each) for each in self.problems],
            "ok": self.is_ok,
        }


def read_archive(path: str, *, import_timeout_s: float | None = None) -> ArchiveReport:
    """The report on the archive at `path`: a .mar or .tar.gz file, or a directory.

    import_timeout_s: how long the handler's import may take; None leaves it out.
    """
    report = ArchiveReport(path)
    path = os.path.abspath(path)
    if not os.path.exists(path):
        report.error("There is no such file or directory.")
        return report
    is_directory = os.path.isdir(path)
    with tempfile.TemporaryDirectory(prefix="ts-archive-") as temp_dir:
        store = ModelStore(os.path.dirname(path), temp_dir)
        try:
            if is_directory:
                report.format = "directory"
            else:
                report.format = _format(path)
                report.bytes, report.sha256 = _digest(path)
            # A file's name alone: the server looks it up in its store, whatever folder that is.
            url = path if is_directory else os.path.basename(path)
            archive = asyncio.run(store.open(url))
        except (ServingError, OSError) as error:
            report.error(str(error).replace(temp_dir, "<temp>"))
            return report
        try:
            _describe(archive, report)
            if import_timeout_s is not None and archive.handler:
                _import_handler(archive, import_timeout_s, report)
        finally:
            store.release_blocking(archive)
    return report


def _format(path: str) -> str:
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic.startswith(b"PK"):
        return "zip"
    return "tar.gz" if magic.startswith(b"\x1f\x8b") else "unknown"


def _describe(archive: ModelArchive, report: ArchiveReport) -> None:
    report.files = sorted(_files(archive.path, report), key=lambda each: each.name)
    if report.format == "directory":
        report.bytes = sum(each.bytes for each in report.files)
    names = {each.name for each in report.files}
    if MANIFEST_PATH not in names:
        report.warn(f"There is no {MANIFEST_PATH}: whoever registers it has to name everything.")
        return
    manifest = archive.manifest
    report.manifest = manifest
    if archive.config is not None:
        report.config = stated_values(archive.config)
    for warning in archive.warnings:
        report.warn(warning)
    if not manifest.model_name:
        report.warn("The manifest has no modelName: a registration over HTTP has to give one.")
    if not manifest.handler:
        report.warn("The manifest names no handler: the registration or the server has to.")
    report.problems += what_a_worker_misses(archive)


def what_a_worker_misses(archive: ModelArchive) -> Iterator[Problem]:
    """What keeps a worker from loading the model, as far as manifest and files tell."""
    manifest = archive.manifest
    if manifest.runtime == "LSP":
        yield Problem("error", "Runtime LSP: compiled handlers are not served here.")
    for key, name in (
        ("serializedFile", manifest.serialized_file),
        ("modelFile", manifest.model_file),
        ("requirementsFile", manifest.requirements_file),
    ):
        if name and not archive.has_file(name):
            yield Problem("error", f"The manifest's {key} {name} is not in the archive.")
    yield from _what_a_default_handler_misses(archive)


def _what_a_default_handler_misses(archive: ModelArchive) -> Iterator[Problem]:
    """No errors: the configuration file or the environment may allow weights with their class."""
    manifest = archive.manifest
    handler = manifest.handler
    if handler not in _DEFAULT_HANDLERS or archive.has_file(f"{handler}.py"):
        return
    weights = manifest.serialized_file
    is_complete = weights.endswith(_COMPLETE_MODELS)
    if not (manifest.model_file or is_complete or (weights and manifest.config_file)):
        what = f" to load {weights}" if weights else ", or a serialized file that holds a model"
        need_none = ", ".join(_COMPLETE_MODELS)
        yield Problem("warning", f"{handler} needs a model file{what} ({need_none} need none).")
    if handler == "text_classifier" and not archive.has_file("source_vocab.pt"):
        yield Problem(
            "warning",
            "text_classifier needs a vocabulary, source_vocab.pt among the extra files.",
        )


def _files(directory: str, report: ArchiveReport) -> Iterator[ArchivedFile]:
    """Every plain file; what a directory model links to or holds besides is reported only."""
    root = os.path.realpath(directory)
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            shown = os.path.relpath(path, root).replace(os.sep, "/")
            real = os.path.realpath(path)
            if os.path.commonpath((root, real)) != root:
                report.warn(f"{shown} is a link out of the directory, to {real}.")
            if not os.path.isfile(real):
                report.warn(f"{shown} is no plain file.")
                continue
            yield ArchivedFile(shown, *_digest(real))


def _digest(path: str) -> tuple[int, str]:
    """Size in bytes and SHA-256 in hex of a file, read in pieces."""
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            size += len(chunk)
            digest.update(chunk)
    return size, digest.hexdigest()


# --- the handler ----------------------------------------------------------------------------------


def _import_handler(archive: ModelArchive, timeout_s: float, report: ArchiveReport) -> None:
    """Import the handler as a worker would, in a process of its own."""
    spec = importlib.util.find_spec("ts")
    if spec is None or not spec.submodule_search_locations:
        report.warn("The handler was not imported: the package ts is not installed.")
        return
    home = os.path.dirname(os.path.abspath(spec.submodule_search_locations[0]))
    paths = [os.environ.get("PYTHONPATH", ""), os.path.realpath(archive.path), home]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",  # a directory model stays as it is
    }
    with tempfile.TemporaryFile() as result:
        command = [sys.executable, "-P", "-c", _CHECK, home, "--result-fd", str(result.fileno())]
        process = subprocess.Popen(  # noqa: S603  (our own command, no shell)
            [*command, "--", archive.handler, archive.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=archive.path,
            env=environment,
            pass_fds=[result.fileno()],
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            report.error(f"The handler {archive.handler} was not imported within {timeout_s:g} s.")
            return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it may have started others
            process.communicate()
        result.seek(0)
        content = result.read()
    _read_check(archive, content, output, process.returncode, report)


def _read_check(
    archive: ModelArchive, content: bytes, output: bytes, status: int, report: ArchiveReport
) -> None:
    if not content:
        lines = output.decode("utf-8", "replace").splitlines()[-20:]
        report.error(f"Importing {archive.handler} ended the process (status {status}).", lines)
        return
    check = json.loads(content)
    report.handler = check["entry_point"]
    if check["warning"]:
        report.warn(f"Handler {archive.handler}: {check['warning']}")
    if check["error"]:
        inside = {os.path.realpath(archive.path) + os.sep, archive.path + os.sep}
        lines = check["traceback"]
        for prefix in inside:  # the reader knows the handler's file, not where it was unpacked
            lines = [line.replace(prefix, "") for line in lines]
        report.error(f"Handler {archive.handler}: {check['error']}", lines)
        if archive.manifest.requirements_file and check["missing_module"]:
            report.warn(
                f"{check['missing_module']} may be among the packages of"
                f" {archive.manifest.requirements_file}: install them, or leave the import out"
                " with --no-import."
            )


# --- the command ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if the archive can be read (inspect) or served (verify), else 1."""
    options = _parser().parse_args(arguments)
    is_verifying = options.command == "verify"
    timeout_s = options.timeout if is_verifying and not options.no_import else None
    report = read_archive(options.archive, import_timeout_s=timeout_s)
    if options.json:
        _print(json.dumps(report.to_json(), indent=2))
    else:
        lines = _verdict(report) if is_verifying else [*_content(report), *_verdict(report)]
        _print("\n".join(lines))
    if is_verifying:
        is_refused = not report.is_ok or (options.strict and bool(report.problems))
    else:
        is_refused = not report.files
    return 1 if is_refused else 0


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # As in `inspect m.mar | head`: the reader has seen enough. The verdict still counts, and
        # what the stream holds must not be written again at the exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torch-model-archiver", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser(
        "inspect",
        allow_abbrev=False,
        help="show what an archive holds",
        description="Show what an archive holds: manifest, configuration as the server reads it, "
        "files with sizes and SHA-256. The status is 1 if the server would not open it.",
    )
    verify = commands.add_parser(
        "verify",
        allow_abbrev=False,
        help="check whether an archive can be served",
        description="Check whether the server would take an archive: that it is complete and "
        "harmless to unpack, that its configuration is understood, and that its handler can be "
        "imported here (in a process of its own; nothing of it is called). The status is 0 if so, "
        "else 1.",
    )
    for command in (inspect, verify):
        command.add_argument("archive", help="a .mar or .tar.gz file, or a directory")
        command.add_argument("--json", action="store_true", help="print the report as JSON")
    verify.add_argument(
        "--no-import", action="store_true", help="do not import the handler (it is code of others)"
    )
    verify.add_argument(
        "--timeout",
        type=float,
        default=IMPORT_TIMEOUT_S,
        metavar="SECONDS",
        help="how long the import may take (default: %(default)g)",
    )
    verify.add_argument("--strict", action="store_true", help="count warnings as errors")
    return parser


def _content(report: ArchiveReport) -> Iterator[str]:
    yield f"{report.path} ({report.format}, {report.bytes:,} bytes)"
    if report.sha256:
        yield f"sha256 {report.sha256}"
    if report.manifest is not None:
        yield from ("", MANIFEST_PATH)
        for key, value in _manifest_entries(report.manifest).items():
            yield f"  {key:<16} {value}"
    if report.config and report.manifest is not None:
        yield from ("", f"{report.manifest.config_file}, as the server reads it")
        for key, value in report.config.items():
            yield f"  {key:<16} {json.dumps(value)}"
    if report.files:
        yield from ("", f"{len(report.files)} files (bytes, sha256, name)")
        width = max(len(f"{each.bytes:,}") for each in report.files)
        for each in report.files:
            yield f"  {each.bytes:>{width},}  {each.sha256}  {each.name}"
    if report.problems:
        yield ""


def _manifest_entries(manifest: Manifest) -> dict[str, str]:
    """What the manifest says, under its own spelling of the keys."""
    entries = msgspec.structs.asdict(manifest).items()
    return {re.sub("_(.)", lambda at: at[1].upper(), key): value for key, value in entries if value}


def _verdict(report: ArchiveReport) -> Iterator[str]:
    for problem in report.problems:
        yield f"{problem.level}: {problem.text}"
        yield from (f"    {line}" for line in problem.details)
    if report.handler:
        yield f"handler: {report.handler}"
    if report.is_ok:
        yield f"{report.path}: ok"
    else:
        count = sum(problem.level == "error" for problem in report.problems)
        yield f"{report.path}: {count} error{'s' if count > 1 else ''}"


if __name__ == "__main__":
    sys.exit(main())
