"""`torch-model-archiver inspect` and `verify`, run as a person runs them."""

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import MODELS, SOURCE_PATHS

from model_archiver import ModelArchiver, ModelArchiverConfig

Run = Callable[..., subprocess.CompletedProcess[str]]
CONFIG = "batchSize: 4\nBatchSize: 5\nmaxBatchDelay: soon\nhandler: {own: 1}\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(arguments...) is `torch-model-archiver`; its temporary directory is empty afterwards."""
    (tmp_path / "temp").mkdir()
    (tmp_path / "here").mkdir()
    start = "from model_archiver.model_packaging import generate_model_archive as g; g()"
    paths = os.pathsep.join(SOURCE_PATHS)
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(tmp_path / "temp")}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-c", start, *map(str, arguments)],
            cwd=tmp_path / "here",
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert os.listdir(tmp_path / "temp") == []
        assert os.listdir(tmp_path / "here") == []
        return result

    return run


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    """pack(handler, **fields) makes `m.mar` (or as `archive_format` says) and gives its path."""
    (tmp_path / "c.yaml").write_text(CONFIG)

    def pack(handler: Path | str = MODELS / "echo.py", **more: object) -> Path:
        config = ModelArchiverConfig(
            model_name="m",
            handler=str(handler),
            version="1.0",
            export_path=str(tmp_path),
            force=True,
            **more,  # type: ignore[arg-type]
        )
        ModelArchiver.generate_model_archive(config)
        suffix = {"tgz": ".tar.gz", "no-archive": ""}.get(config.archive_format, ".mar")
        return tmp_path / f"m{suffix}"

    return pack


def handler_file(folder: Path, source: str) -> Path:
    path = folder / "mine.py"
    path.write_text(source)
    return path


def report(result: subprocess.CompletedProcess[str]) -> dict:
    return json.loads(result.stdout)


def texts(result: subprocess.CompletedProcess[str], level: str) -> list[str]:
    return [each["text"] for each in report(result)["problems"] if each["level"] == level]


# --- inspect --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("archive_format", "kind"), [("default", "zip"), ("tgz", "tar.gz"), ("no-archive", "directory")]
)
def test_inspect_tells_the_same_of_every_format(
    run: Run, pack: Callable, tmp_path: Path, archive_format: str, kind: str
) -> None:
    path = pack(archive_format=archive_format, config_file=str(tmp_path / "c.yaml"))
    result = run("inspect", path, "--json")
    assert result.returncode == 0, result.stderr
    found = report(result)
    assert (found["path"], found["format"], found["ok"]) == (str(path), kind, True)
    if kind == "directory":
        assert found["sha256"] is None
    else:
        assert found["bytes"] == path.stat().st_size
        assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["manifest"].items() >= {
        "modelName": "m",
        "modelVersion": "1.0",
        "handler": "echo.py",
        "configFile": "c.yaml",
        "runtime": "python",
    }.items()  # fmt: skip
    assert found["config"] == {"batchSize": 4}
    files = {each["name"]: each for each in found["files"]}
    assert sorted(files) == ["MAR-INF/MANIFEST.json", "c.yaml", "echo.py"]
    assert files["c.yaml"] == {
        "name": "c.yaml",
        "bytes": len(CONFIG),
        "sha256": hashlib.sha256(CONFIG.encode()).hexdigest(),
    }
    warnings = texts(result, "warning")
    assert any("maxBatchDelay should be an integer" in text for text in warnings)
    assert any("did you mean 'batchSize'?" in text for text in warnings)


def test_inspect_spells_keys_as_the_file_does(run: Run, pack: Callable, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "parallelType: tp\ntorchrun: {nproc-per-node: 2}\nresponseTimeout: 5\n"
    )
    found = report(run("inspect", pack(config_file=str(tmp_path / "c.yaml")), "--json"))["config"]
    assert found["responseTimeout"] == 5
    assert found["torchrun"]["nproc-per-node"] == 2


def test_inspect_for_people(run: Run, pack: Callable, tmp_path: Path) -> None:
    path = pack(config_file=str(tmp_path / "c.yaml"))
    lines = run("inspect", path).stdout.splitlines()
    assert lines[0].startswith(f"{path} (zip, ")
    assert "  modelName        m" in lines
    assert "  batchSize        4" in lines
    assert any(line.endswith("  echo.py") for line in lines)
    assert lines[-1] == f"{path}: ok"


# --- verify ---------------------------------------------------------------------------------------

CLASS = (
    "class Mine:\n    def initialize(self, context): 1 / 0\n    def handle(self, data, c): 1 / 0\n"
)


@pytest.mark.parametrize(
    ("source", "entry_point"),
    [
        ("def handle(data, context):\n    1 / 0\n", "function handle of mine"),
        (CLASS, "class Mine of mine"),
        (f"print('noise')\n{CLASS}", "class Mine of mine"),
    ],
)
def test_verify_imports_the_handler_and_calls_nothing(
    run: Run, pack: Callable, tmp_path: Path, source: str, entry_point: str
) -> None:
    result = run("verify", pack(handler_file(tmp_path, source)), "--json")
    assert result.returncode == 0, result.stdout
    assert (report(result)["handler"], report(result)["problems"]) == (entry_point, [])


def test_verify_knows_default_handlers(run: Run, pack: Callable) -> None:
    result = run("verify", pack("base_handler"), "--json")
    assert result.returncode == 0, result.stdout
    assert report(result)["handler"] == "class BaseHandler of ts.torch_handler.base_handler"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def handle(:\n", "SyntaxError: "),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("def other(data, context): ...\n", "has no function handle and not exactly one class"),
        (f"{CLASS}\nclass Second: ...\n", "not exactly one class (Mine, Second)"),
    ],
)
def test_verify_refuses_a_handler_that_cannot_be_loaded(
    run: Run, pack: Callable, tmp_path: Path, source: str, said: str
) -> None:
    path = pack(handler_file(tmp_path, source))
    result = run("verify", path)
    assert result.returncode == 1
    assert "error: Handler mine.py: " in result.stdout
    assert said in result.stdout
    assert result.stdout.endswith(f"{path}: 1 error\n")
    assert str(tmp_path / "temp") not in result.stdout


def test_verify_shows_where_the_handler_failed(run: Run, pack: Callable, tmp_path: Path) -> None:
    path = pack(handler_file(tmp_path, "def f():\n    1 / 0\nf()\n"))
    lines = run("verify", path).stdout.splitlines()
    frames = [line.strip() for line in lines if line.strip().startswith("File ")]
    assert frames == ['File "mine.py", line 3, in <module>', 'File "mine.py", line 2, in f']


def test_verify_points_at_the_requirements(run: Run, pack: Callable, tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("nowhere\n")
    path = pack(handler_file(tmp_path, "import nowhere\n"), requirements_file=f"{tmp_path}/r.txt")
    result = run("verify", path, "--json")
    assert result.returncode == 1
    assert texts(result, "warning")[0].startswith("nowhere may be among the packages of r.txt")
    assert run("verify", path, "--no-import").returncode == 0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import time\ntime.sleep(60)\n", "was not imported within 1 s"),
        ("import os\nos._exit(7)\n", "ended the process (status 7)"),
    ],
)
def test_verify_survives_the_handler(
    run: Run, pack: Callable, tmp_path: Path, source: str, said: str
) -> None:
    result = run("verify", pack(handler_file(tmp_path, source)), "--timeout", "1", "--json")
    assert result.returncode == 1
    assert said in texts(result, "error")[0]


def test_a_reader_that_has_seen_enough_is_no_failure(pack: Callable) -> None:
    """`inspect m.mar | head`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "ts_frontend.archive_report", "inspect", str(pack())],
            stdout=write_end,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCE_PATHS)},
            timeout=60,
            check=False,
        )
    finally:
        os.close(write_end)
    assert (result.returncode, result.stderr) == (0, b"")


def test_strict_counts_warnings(run: Run, pack: Callable, tmp_path: Path) -> None:
    path = pack(config_file=str(tmp_path / "c.yaml"))
    assert run("verify", path).returncode == 0
    assert run("verify", path, "--strict").returncode == 1


def rewritten(path: Path, drop: str, manifest: dict | None = None) -> Path:
    """The archive without the entry `drop`, with these additions to its manifest's model."""
    out = path.with_name("changed.mar")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "MAR-INF/MANIFEST.json" and manifest:
                known = json.loads(content)
                known["model"] |= manifest
                content = json.dumps(known).encode()
            if name != drop:
                new.writestr(name, content)
    return out


def test_what_the_manifest_names_must_be_there(run: Run, pack: Callable) -> None:
    path = rewritten(pack(), "", {"serializedFile": "w.pt", "modelFile": "net.py"})
    result = run("verify", path, "--json")
    assert result.returncode == 1
    assert texts(result, "error") == [
        "The manifest's serializedFile w.pt is not in the archive.",
        "The manifest's modelFile net.py is not in the archive.",
    ]


@pytest.mark.parametrize(
    ("handler", "files", "said"),
    [
        ("base_handler", ("w.pth",), ["base_handler needs a model file to load w.pth"]),
        ("image_classifier", (), ["image_classifier needs a model file, or a serialized file"]),
        ("image_classifier", ("w.pth", "model_file"), []),
        ("image_classifier", ("w.pth", "config_file"), []),  # may say weights_only: false
        ("object_detector", ("w.pt",), []),
        ("base_handler", ("w.onnx",), []),
        ("text_classifier", ("w.pt",), ["text_classifier needs a vocabulary"]),
        ("text_classifier", ("w.pt", "source_vocab.pt"), []),
        (MODELS / "echo.py", ("w.pth",), []),
    ],
)
def test_what_a_default_handler_needs(
    run: Run, pack: Callable, tmp_path: Path, handler: str | Path, files: tuple, said: list[str]
) -> None:
    more = {}
    for name in files:
        path = tmp_path / name
        path.write_text("# a file")
        keys = {"source_vocab.pt": "extra_files", "model_file": name, "config_file": name}
        more[keys.get(name, "serialized_file")] = str(path)
    result = run("inspect", pack(handler, **more), "--json")
    assert result.returncode == 0
    warnings = texts(result, "warning")
    assert len(warnings) == len(said)
    assert all(warning.startswith(text) for warning, text in zip(warnings, said, strict=True))


def test_an_archive_without_a_manifest_can_be_served(run: Run, pack: Callable) -> None:
    result = run("verify", rewritten(pack(), "MAR-INF/MANIFEST.json"), "--json")
    assert result.returncode == 0
    assert texts(result, "warning")[0].startswith("There is no MAR-INF/MANIFEST.json")


def hostile(folder: Path, kind: str) -> Path:
    path = folder / "bad.mar"
    if kind == "symlink in tar":
        with tarfile.open(path, "w:gz") as tar:
            link = tarfile.TarInfo("m/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if kind == "traversal":
            archive.writestr("../../outside.py", "x")
        elif kind == "symlink":
            info = zipfile.ZipInfo("link")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
        else:
            with archive.open("bomb", "w") as bomb:
                for _ in range(80):
                    bomb.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("traversal", "Detected Zip Slip vulnerability: ../../outside.py"),
        ("symlink", "neither a file nor a directory"),
        ("symlink in tar", "neither a plain file nor a directory"),
        ("bomb", "unpacks to more than 200 times its size"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_hostile_archives_are_refused_as_the_server_refuses_them(
    run: Run, tmp_path: Path, kind: str, said: str, command: str
) -> None:
    result = run(command, hostile(tmp_path, kind), "--json")
    assert result.returncode == 1
    assert said in texts(result, "error")[0]
    assert not (tmp_path / "outside.py").exists()


def test_no_archive(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "a.mar"
    text.write_text("text")
    assert texts(run("verify", text, "--json"), "error") == [
        "The file is no model archive: neither zip (.mar) nor tar.gz."
    ]
    missing = run("inspect", tmp_path / "none.mar")
    assert missing.returncode == 1
    assert "error: There is no such file or directory." in missing.stdout


def test_a_directory_that_links_outwards(run: Run, pack: Callable, tmp_path: Path) -> None:
    path = pack(archive_format="no-archive")
    (tmp_path / "weights.pt").write_bytes(b"w")
    (path / "weights.pt").symlink_to(tmp_path / "weights.pt")
    os.mkfifo(path / "pipe")
    result = run("inspect", path, "--json")
    warnings = texts(result, "warning")
    assert f"weights.pt is a link out of the directory, to {tmp_path / 'weights.pt'}." in warnings
    assert "pipe is no plain file." in warnings
    assert "weights.pt" in {each["name"] for each in report(result)["files"]}


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("inspect",), ("verify", "a", "b"), ("verify", "--what")])
def test_usage(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage: torch-model-archiver" in result.stderr


def test_without_the_server(command: Run) -> None:
    """As the packing command does, these run where only the archiver is, and say what they lack."""
    result = command("verify", "m.mar")
    assert result.returncode == 1
    assert "the server is not installed here" in result.stderr


def test_the_entry_named_like_the_package_does_not_shadow_it(
    run: Run, pack: Callable, tmp_path: Path
) -> None:
    path = pack()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ts/__init__.py", io.BytesIO(b"1 / 0\n").getvalue())
    result = run("verify", path, "--json")
    assert (result.returncode, report(result)["handler"]) == (0, "function handle of echo")
