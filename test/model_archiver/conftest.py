from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "model-archiver"


@pytest.fixture
def model_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with what people hand to the archiver; `out/` is there for archives.

    `temp/` is the temporary directory of the archiver, to see that it stays empty.
    """
    for name in ("h.py", "dir/hh.py", "w.pt", "net.py", "r.txt", "t1.txt", "t2.txt", "lib.so"):
        _write(tmp_path / name, name)
    _write(tmp_path / "c.yaml", "batchSize: 2\n")
    for name in ("a.txt", ".dot", "sub/b.txt", "sub/deep/c.txt", "MANIFEST.json"):
        _write(tmp_path / "extra" / name, name)
    for name in (".git/config", "__pycache__/h.pyc", "__MACOSX/h.py", "sub/__pycache__/b.pyc"):
        _write(tmp_path / "extra" / name, "not for the archive")
    (tmp_path / "out").mkdir()
    (tmp_path / "temp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    return tmp_path


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture
def command(model_files: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """command(arguments...) runs `torch-model-archiver` as a process without site packages."""
    start = "from model_archiver.model_packaging import generate_model_archive as g; g()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(model_files / "temp")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-W", "error", "-c", start, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
