"""The compiled build (setup.py): that its modules stay fit for mypyc.

Whether the server is right when compiled, the tests of the whole server tell: `scripts/compile`,
then `scripts/test test/e2e test/faults`.
"""

from __future__ import annotations

import ast
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def compiled() -> list[str]:
    """The modules, as setup.py names them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **_: None)
        patch.delenv("TS_COMPILE", raising=False)
        return runpy.run_path(str(ROOT / "setup.py"))["COMPILED"]


def test_every_module_exists_once(compiled: list[str]) -> None:
    assert compiled == sorted(set(compiled))
    assert [name for name in compiled if not (ROOT / name).is_file()] == []


def test_mypyc_gets_nothing_that_it_gets_wrong(compiled: list[str]) -> None:
    """It translates these without a word, and the result fails when it runs."""
    found = []
    for name in compiled:
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Call) else ""
            if text.startswith("dataclass(") and "slots=True" in text:
                found.append(f"{name}:{node.lineno}: a data class with slots")
            if ".__init__(" in text and any(
                isinstance(word, ast.Starred) for word in getattr(node, "args", [])
            ):
                found.append(f"{name}:{node.lineno}: a base class's constructor with *args")
    assert not found


def test_mypyc_translates_them(compiled: list[str], tmp_path: Path) -> None:
    """To C, which is the half that depends on our code, in about 20 seconds."""
    for folder in ("frontend/ts_frontend", "ts", "model-archiver"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    program = "import sys; from mypyc.build import mypycify; mypycify(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, "--config-file=pyproject.toml", *compiled],
        cwd=tmp_path,
        env={**os.environ, "MYPY_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "build").glob("*.c"))
