"""What a forked worker has to put in order, compared with what an interpreter does at its start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ts.worker_zygote import find_shadow, fresh_path


def path_of_a_fresh_interpreter(python_path: str | None, folder: Path) -> list[str]:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python_path is not None:
        environ["PYTHONPATH"] = python_path
    script = folder / "scripts" / "path.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text("import json, sys; print(json.dumps(sys.path[1:]))")
    return json.loads(subprocess.check_output([sys.executable, script], env=environ, cwd=folder))


PYTHON_PATHS = [
    "",
    "/a",
    "/a:/b",
    "relative:/b",
    "/a:/a/:/a/./:/b/../a",
    "/a::/b",
    ":",
    "/none" + os.sep,
    os.path.dirname(os.__file__) + ":/a",
]


@pytest.mark.parametrize("python_path", PYTHON_PATHS)
def test_the_path_is_that_of_a_fresh_interpreter(
    python_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = path_of_a_fresh_interpreter(None, tmp_path)
    monkeypatch.chdir(tmp_path)
    wanted = path_of_a_fresh_interpreter(python_path, tmp_path)
    assert fresh_path(python_path, rest) == wanted


SHADOWS = [
    ("yaml.py", True),
    ("yaml.pyc", True),
    ("yaml.abi3.so", True),
    ("yaml/__init__.py", True),
    ("yaml/other.py", False),  # stands behind a package of that name
    ("yaml.json", False),
    ("yaml", False),
    ("yamlish.py", False),
    ("more/yaml.py", False),
    ("sitecustomize.py", True),
]


@pytest.mark.parametrize(("name", "is_shadow"), SHADOWS)
def test_a_module_that_would_have_been_taken_instead(
    name: str, is_shadow: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True)
    path.touch()
    folders = [str(tmp_path / "none"), str(tmp_path / "model")]
    found = find_shadow(folders, {"yaml", "sitecustomize"})
    assert (found is not None) == is_shadow
    if found is not None:
        assert str(path).startswith(found)


def test_a_folder_that_only_the_import_system_understands(tmp_path: Path) -> None:
    packed = tmp_path / "packed.zip"
    packed.touch()
    assert find_shadow([str(packed)], {"yaml"}) == str(packed)
