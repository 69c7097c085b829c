from __future__ import annotations

import json
import os
import re
import stat
import tarfile
import zipfile
from datetime import datetime
from pathlib import Path

import pytest

from model_archiver import ModelArchiver, ModelArchiverConfig, __version__
from model_archiver.model_archiver_error import ModelArchiverError
from model_archiver.model_packaging import ArgParser, generate_model_archive, package_model

BASE = ("--model-name", "m", "-v", "1.0", "--handler", "h.py")
EXTRA_FILES = [".dot", "MANIFEST.json", "a.txt", "sub/b.txt", "sub/deep/c.txt"]


def config(**changes: object) -> ModelArchiverConfig:
    values = {"model_name": "m", "handler": "h.py", "version": "1.0", "export_path": "out"}
    return ModelArchiverConfig(**{**values, **changes})  # type: ignore[arg-type]


def content(path: str | Path) -> dict[str, bytes]:
    """Name -> bytes of every entry, in the archive's order."""
    path = Path(path)
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        return {str(each.relative_to(path)): each.read_bytes() for each in files}
    if path.suffix == ".gz":
        with tarfile.open(path) as archive:
            return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    with zipfile.ZipFile(path) as zip_file:
        return {info.filename: zip_file.read(info) for info in zip_file.infolist()}


def manifest(path: str | Path) -> dict:
    found = content(path)
    (name,) = (name for name in found if name.endswith("MAR-INF/MANIFEST.json"))
    return json.loads(found[name])


# --- the archive -------------------------------------------------------------------------------

FULL = {
    "serialized_file": "w.pt",
    "model_file": "net.py",
    "extra_files": "extra,t?.txt",
    "requirements_file": "r.txt",
    "config_file": "c.yaml",
}
FULL_NAMES = sorted(
    [*EXTRA_FILES, *["c.yaml", "h.py", "net.py", "r.txt", "t1.txt", "t2.txt", "w.pt"]]
)


@pytest.mark.parametrize(
    ("archive_format", "file_name", "prefix"),
    [
        ("default", "m.mar", ""),
        ("zip-store", "m.mar", ""),
        ("tgz", "m.tar.gz", "m/"),
        ("no-archive", "m", ""),
    ],
)
def test_formats(model_files: Path, archive_format: str, file_name: str, prefix: str) -> None:
    ModelArchiver.generate_model_archive(config(archive_format=archive_format, **FULL))
    assert os.listdir("out") == [file_name]
    found = content(f"out/{file_name}")
    expected = [*(prefix + name for name in FULL_NAMES), f"{prefix}MAR-INF/MANIFEST.json"]
    assert sorted(found) == sorted(expected)
    assert found[f"{prefix}sub/b.txt"] == b"sub/b.txt"
    assert list(manifest(f"out/{file_name}")["model"].items()) == [
        ("modelName", "m"),
        ("serializedFile", "w.pt"),
        ("handler", "h.py"),
        ("modelFile", "net.py"),
        ("modelVersion", "1.0"),
        ("requirementsFile", "r.txt"),
        ("configFile", "c.yaml"),
    ]
    assert os.listdir("temp") == []
    if archive_format == "no-archive":
        return
    # In a fixed order, the manifest last.
    assert list(found)[-1].endswith("MAR-INF/MANIFEST.json")
    assert found == dict(sorted(found.items(), key=lambda item: item[0] == list(found)[-1]))
    if archive_format != "tgz":
        method = zipfile.ZIP_STORED if archive_format == "zip-store" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile("out/m.mar") as archive:
            assert {info.compress_type for info in archive.infolist()} == {method}


def test_order_of_entries_is_fixed(model_files: Path) -> None:
    generate_model_archive(config(extra_files="t2.txt,extra,t1.txt", model_name="a"))
    generate_model_archive(config(extra_files="t1.txt,t2.txt,extra", model_name="b"))
    assert list(content("out/a.mar")) == list(content("out/b.mar"))


def test_archive_is_readable_as_new_files_are(model_files: Path) -> None:
    old = os.umask(0o022)
    try:
        generate_model_archive(config())
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat("out/m.mar").st_mode) == 0o644


def test_tar_names_no_owner_and_holds_no_links(model_files: Path) -> None:
    os.symlink("w.pt", "link.pt")
    generate_model_archive(config(archive_format="tgz", serialized_file="link.pt"))
    with tarfile.open("out/m.tar.gz") as archive:
        for entry in archive:
            assert entry.isreg()
            assert (entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, "", "")


def test_old_files(model_files: Path) -> None:
    """Reproducible builds date their files at the epoch, which a zip cannot say."""
    os.utime("h.py", (0, 0))
    generate_model_archive(config())
    assert "h.py" in content("out/m.mar")


def test_manifest_text(model_files: Path) -> None:
    generate_model_archive(config(handler="image_classifier", runtime="python3", version=""))
    text = content("out/m.mar")["MAR-INF/MANIFEST.json"].decode()
    created_on = json.loads(text)["createdOn"]
    assert datetime.strptime(created_on, "%d/%m/%Y %H:%M:%S")
    assert text == (
        "{\n"
        f'  "createdOn": "{created_on}",\n'
        '  "runtime": "python3",\n'
        '  "model": {\n'
        '    "modelName": "m",\n'
        '    "handler": "image_classifier"\n'
        "  },\n"
        f'  "archiverVersion": "{__version__}"\n'
        "}"
    )


# --- handlers and other files ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "runtime", "written", "files"),
    [
        ("h.py", "python", "h.py", ["h.py"]),
        ("h", "python", "h", ["h.py"]),
        ("h:handle", "python", "h:handle", ["h.py"]),
        ("h.py:handle", "python", "h.py:handle", ["h.py"]),
        ("dir/hh.py", "python3", "hh.py", ["hh.py"]),
        ("dir/hh", "python", "hh", ["hh.py"]),
        ("dir/hh.py:handle", "python3", "hh.py:handle", ["hh.py"]),
        ("base_handler", "python", "base_handler", []),
        ("vllm_handler", "python3", "vllm_handler", []),
        ("BaseHandler", "LSP", "BaseHandler", []),
        ("TorchScriptHandler", "LSP", "TorchScriptHandler", []),
        ("lib:Handler", "LSP", "lib:Handler", ["lib.so"]),
    ],
)
def test_handlers(
    model_files: Path, monkeypatch, handler: str, runtime: str, written: str, files: list[str]
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    generate_model_archive(config(handler=handler, runtime=runtime))
    assert manifest("out/m.mar")["model"]["handler"] == written
    assert list(content("out/m.mar")) == [*files, "MAR-INF/MANIFEST.json"]


def test_compiled_handler_on_macos(model_files: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    (model_files / "lib.dylib").write_text("")
    generate_model_archive(config(handler="lib:Handler", runtime="LSP"))
    assert "lib.dylib" in content("out/m.mar")


def test_handler_file_with_a_colon_in_its_name(model_files: Path) -> None:
    (model_files / "odd.py:v2").write_text("odd")
    generate_model_archive(config(handler="odd.py:v2"))
    assert content("out/m.mar")["odd.py:v2"] == b"odd"


@pytest.mark.parametrize(
    ("extra_files", "names"),
    [
        ("t1.txt", ["t1.txt"]),
        ("t1.txt,t2.txt", ["t1.txt", "t2.txt"]),
        ("t1.txt, t2.txt ,", ["t1.txt", "t2.txt"]),
        ("t[12].txt", ["t1.txt", "t2.txt"]),
        ("extra/sub", ["b.txt", "deep/c.txt"]),
        ("extra/*/*.txt", ["b.txt"]),
        ("*.none", []),
        ("", []),
        ("a[1].txt", ["a[1].txt"]),
    ],
)
def test_extra_files(model_files: Path, extra_files: str, names: list[str]) -> None:
    (model_files / "a[1].txt").write_text("")
    generate_model_archive(config(extra_files=extra_files))
    assert sorted(set(content("out/m.mar")) - {"h.py", "MAR-INF/MANIFEST.json"}) == names


def test_one_file_for_two_flags(model_files: Path, caplog) -> None:
    generate_model_archive(config(serialized_file="w.pt", extra_files="w.pt,./w.pt"))
    assert caplog.text == ""
    (model_files / "other").mkdir()
    (model_files / "other" / "h.py").write_text("other")
    generate_model_archive(config(extra_files="other/h.py", force=True))
    assert "other/h.py replaces another file of that name" in caplog.text
    assert content("out/m.mar")["h.py"] == b"other"


def test_file_system_without_links(model_files: Path, monkeypatch) -> None:
    def no_links(source: str, target: str) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", no_links)
    generate_model_archive(config(**FULL))
    assert sorted(content("out/m.mar")) == sorted([*FULL_NAMES, "MAR-INF/MANIFEST.json"])


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model_name": "a b"}, ModelArchiverError, "Model name contains special characters.\n"),
        ({"model_name": ""}, ModelArchiverError, "special characters"),
        ({"model_name": ".a"}, ModelArchiverError, "special characters"),
        ({"model_name": "../a"}, ModelArchiverError, "special characters"),
        ({"model_name": "a\n"}, ModelArchiverError, "special characters"),
        (
            {"export_path": "nowhere"},
            ModelArchiverError,
            "Given export-path nowhere is not a directory. Point to a valid export-path directory.",
        ),
        ({"export_path": "h.py"}, ModelArchiverError, "is not a directory"),
        ({"archive_format": "rar"}, ModelArchiverError, "Unknown archive format 'rar'"),
        ({"runtime": "java"}, ValueError, "'java' is not a valid RuntimeType"),
        ({"handler": "none.py"}, FileNotFoundError, "none.py"),
        ({"handler": "none.py:handle"}, FileNotFoundError, "none.py"),
        ({"handler": "none"}, FileNotFoundError, "none.py"),
        ({"serialized_file": "none.pt"}, FileNotFoundError, "none.pt"),
        ({"model_file": "dir"}, IsADirectoryError, "dir"),
        ({"extra_files": "t1.txt,none"}, FileNotFoundError, "File does not exist: none"),
        ({"extra_files": "/dev/null"}, ValueError, "Invalid extra file given /dev/null"),
        ({"extra_files": "extra,extra"}, FileExistsError, "File exists"),
    ],
)
def test_refused(model_files: Path, changes, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)) as refused:
        generate_model_archive(config(**changes))
    assert refused.type is kind
    assert os.listdir("out") == []
    assert os.listdir("temp") == []


def test_runtime_is_checked_before_the_rest(model_files: Path) -> None:
    with pytest.raises(ValueError, match="RuntimeType"):
        generate_model_archive(config(runtime="java", model_name="a b", export_path="nowhere"))
    with pytest.raises(ModelArchiverError, match="special characters"):
        generate_model_archive(config(model_name="a b", export_path="nowhere"))


@pytest.mark.parametrize("archive_format", ["default", "tgz", "no-archive"])
def test_overwriting(model_files: Path, caplog, archive_format: str) -> None:
    first = config(archive_format=archive_format, extra_files="t1.txt")
    generate_model_archive(first)
    (name,) = os.listdir("out")
    with pytest.raises(ModelArchiverError) as refused:
        generate_model_archive(first)
    assert str(refused.value).startswith(
        f"out/{name} already exists.\nPlease specify --force/-f option"
    )
    assert str(refused.value) in caplog.text
    generate_model_archive(config(archive_format=archive_format, force=True, version="2"))
    assert f"Overwriting out/{name} ..." in caplog.text
    assert manifest(f"out/{name}")["model"]["modelVersion"] == "2"
    # Only of a plain directory the old files stay.
    has_old_file = any(each.endswith("t1.txt") for each in content(f"out/{name}"))
    assert has_old_file == (archive_format == "no-archive")


@pytest.mark.parametrize("archive_format", ["default", "tgz"])
def test_failing_disk_leaves_the_old_archive(
    model_files: Path, monkeypatch, archive_format: str
) -> None:
    generate_model_archive(config(archive_format=archive_format))
    (name,) = os.listdir("out")
    before = Path("out", name).read_bytes()

    def fails(self: object, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", fails)
    monkeypatch.setattr(tarfile.TarFile, "add", fails)
    with pytest.raises(OSError, match="No space left"):
        generate_model_archive(config(archive_format=archive_format, force=True))
    assert os.listdir("out") == [name]
    assert Path("out", name).read_bytes() == before
    assert os.listdir("temp") == []


def test_no_archive_into_the_temporary_directory(model_files: Path) -> None:
    generate_model_archive(config(archive_format="no-archive", export_path="temp"))
    assert os.listdir("temp") == ["m"]


# --- the command and the functions behind it ---------------------------------------------------


def test_command(model_files: Path, command) -> None:
    done = command(*BASE, "--export-path", "out", "--extra-files", "extra", "-c", "c.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "a.txt" in content("out/m.mar")
    done = command("--model-n", "m2", "--handl", "h", "-v", "2")
    assert done.returncode == 0
    assert manifest("m2.mar")["model"]["modelVersion"] == "2"


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        ((), 2, "the following arguments are required: --model-name, --handler, -v/--version"),
        ((*BASE, "--runtime", "java"), 2, "invalid choice: 'java'"),
        ((*BASE, "--archive-format", "rar"), 2, "invalid choice: 'rar'"),
        ((*BASE, "--export-path", "nowhere"), 1, "ERROR - Given export-path nowhere is not a"),
        ((*BASE, "--serialized-file", "w"), 1, "ERROR - [Errno 2] No such file or directory: 'w'"),
        ((*BASE, "--extra-files", "w"), 1, "ERROR - File does not exist: w"),
    ],
)
def test_command_that_fails(command, arguments, status: int, line: str) -> None:
    done = command(*arguments)
    assert done.returncode == status
    assert line in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_arguments_may_come_from_elsewhere(model_files: Path, monkeypatch) -> None:
    """Scripts replace the parser and call the entry point."""
    monkeypatch.setattr("sys.excepthook", None)
    monkeypatch.setattr(ArgParser, "export_model_args_parser", lambda: config())
    generate_model_archive()
    assert os.listdir("out") == ["m.mar"]
    with pytest.raises(ModelArchiverError, match="already exists"):
        generate_model_archive()


def test_package_with_a_manifest_of_ones_own(model_files: Path) -> None:
    package_model(config(), '{"a": 1}')
    assert manifest("out/m.mar") == {"a": 1}


def test_defaults(model_files: Path) -> None:
    assert ModelArchiverConfig("m", "h.py", "1") == ModelArchiverConfig(
        model_name="m",
        handler="h.py",
        version="1",
        serialized_file=None,
        model_file=None,
        extra_files=None,
        runtime="python",
        export_path=str(model_files),
        archive_format="default",
        force=False,
        requirements_file=None,
        config_file=None,
    )
