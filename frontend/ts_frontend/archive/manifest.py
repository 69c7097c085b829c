"""What a model archive says of itself: `MAR-INF/MANIFEST.json`."""

from __future__ import annotations

import re

import msgspec

from ts_frontend.core.errors import InvalidModel

MANIFEST_PATH = "MAR-INF/MANIFEST.json"
MAX_MANIFEST_BYTES = 1 << 20  # archivers write less than 1 KiB
RUNTIMES = ("python", "python3", "LSP")

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")
_NUMBER = re.compile(rb"-?[0-9][0-9.eE+-]*")


class _ModelEntry(msgspec.Struct, rename="camel"):
    model_name: str | None = None
    # Raw, because people write 1.10 without quotes and a float would make 1.1 of it.
    model_version: msgspec.Raw = msgspec.Raw(b"null")
    handler: str | None = None
    serialized_file: str | None = None
    model_file: str | None = None
    envelope: str | None = None
    requirements_file: str | None = None
    config_file: str | None = None
    description: str | None = None


class _ManifestFile(msgspec.Struct, rename="camel"):
    model: _ModelEntry = msgspec.field(default_factory=_ModelEntry)
    runtime: str | None = None
    description: str | None = None
    created_on: str | None = None
    archiver_version: str | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The defaults are those of an archive without a manifest; an empty text means "not given".

    File names are relative to the archive's root and stay inside it.
    handler: a default handler's name, or `[dir/]file[.py][:function]`.
    envelope is read for completeness: the server setting `service_envelope` always replaces it.
    """

    model_name: str = ""
    model_version: str = "1.0"
    handler: str = ""
    runtime: str = "python"
    serialized_file: str = ""
    model_file: str = ""
    envelope: str = ""
    requirements_file: str = ""
    config_file: str = ""
    description: str = ""
    created_on: str = ""
    archiver_version: str = ""

    @classmethod
    def parse(cls, content: bytes) -> Manifest:
        """Read the file's bytes; keys that nobody here knows are left to the handler.

        Raises InvalidModel if it is no JSON object, a value has the wrong type, or a name leads
        out of the archive.
        """
        if len(content) > MAX_MANIFEST_BYTES:
            raise InvalidModel(
                f"{MANIFEST_PATH} has {len(content)} bytes, more than {MAX_MANIFEST_BYTES}."
            )
        try:
            # Windows editors put a byte order mark in front of a hand-written manifest.
            found = msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"), type=_ManifestFile)
            version = _read_version(found.model.model_version)
        except RecursionError as error:
            raise InvalidModel(f"{MANIFEST_PATH} is nested too deeply.") from error
        except ValueError as error:  # msgspec's errors and invalid UTF-8
            raise InvalidModel(f"{MANIFEST_PATH} cannot be read: {error}.") from error
        entry = found.model
        manifest = cls(
            model_name=entry.model_name or "",
            model_version=version or "1.0",
            handler=entry.handler or "",
            runtime=found.runtime or "python",
            serialized_file=entry.serialized_file or "",
            model_file=entry.model_file or "",
            envelope=entry.envelope or "",
            requirements_file=entry.requirements_file or "",
            config_file=entry.config_file or "",
            description=found.description or entry.description or "",
            created_on=found.created_on or "",
            archiver_version=found.archiver_version or "",
        )
        manifest._validate()
        return manifest

    def _validate(self) -> None:
        if self.runtime not in RUNTIMES:
            raise InvalidModel(
                f"{MANIFEST_PATH}: runtime {self.runtime!r} is none of {', '.join(RUNTIMES)}."
            )
        if re.search(r"[/\\]", self.model_name) or self.model_name in (".", ".."):
            raise InvalidModel(f"{MANIFEST_PATH}: modelName {self.model_name!r} is a path.")
        for key in ("model_name", "model_version", "envelope"):
            if _CONTROL_CHARACTER.search(getattr(self, key)):
                raise InvalidModel(f"{MANIFEST_PATH}: {_camel(key)} has a control character.")
        # What follows the colon is a function, or a class of a compiled handler.
        file_name, _, function = self.handler.partition(":")
        _check_inside("handler", file_name)
        if re.search(r"[/\\]", function):  # as in C:\handler.py
            raise InvalidModel(f"{MANIFEST_PATH}: handler {self.handler!r} has no function's name.")
        for key in ("serialized_file", "model_file", "requirements_file", "config_file"):
            _check_inside(_camel(key), getattr(self, key))


def _read_version(raw: msgspec.Raw) -> str:
    text = bytes(raw)
    if _NUMBER.fullmatch(text):
        return text.decode("ascii")
    return msgspec.json.decode(text, type=str | None) or ""


def _check_inside(key: str, name: str) -> None:
    reason = ""
    if _CONTROL_CHARACTER.search(name):
        reason = "has a control character"
    elif "\\" in name:
        reason = "has a backslash"
    elif name.startswith("/") or _DRIVE.match(name):
        reason = "is an absolute path"
    elif ".." in name.split("/"):
        reason = "leads out of the archive"
    if reason:
        raise InvalidModel(f"{MANIFEST_PATH}: {key} {name!r} {reason}.")


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
