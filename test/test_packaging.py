"""What would go missing from an installed package without anybody noticing in the source tree."""

import importlib
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [
    ROOT / "frontend" / "ts_frontend",
    ROOT / "ts",
    ROOT / "model-archiver" / "model_archiver",
    ROOT / "model-archiver" / "workflow_archiver",
]


def files_below(package: Path) -> Iterator[Path]:
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_folder_of_modules_is_a_package(package: Path) -> None:
    folders = {path.parent for path in files_below(package) if path.suffix == ".py"}
    assert folders, f"{package} holds no modules"
    missing = [str(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not missing, f"without __init__.py these are not installed: {missing}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_data_file_is_installed(package: Path) -> None:
    declared = PROJECT["tool"]["setuptools"]["package-data"]
    missing = [
        str(path.relative_to(ROOT))
        for path in files_below(package)
        if path.suffix not in (".py", ".pyc", ".so")
        and not any(fnmatch(path.name, pattern) for pattern in declared["*"])
        and not any(
            fnmatch(str(path.relative_to(package)), pattern)
            for pattern in declared.get(package.name, [])
        )
    ]
    assert not missing, f"not in package-data of pyproject.toml: {missing}"


@pytest.mark.parametrize("command", sorted(PROJECT["project"]["scripts"]))
def test_every_command_has_its_function(command: str) -> None:
    module, function = PROJECT["project"]["scripts"][command].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_pinned_builds_cover_every_test_package() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = PROJECT["project"]["dependencies"] + extras["test"] + extras["examples"]
    names = {requirement_name(text) for text in wanted} - {"torchserve"}
    assert names <= pinned, f"add to constraints.txt: {sorted(names - pinned)}"


def requirement_name(text: str) -> str:
    for mark in "[;<>=! ":
        text = text.partition(mark)[0]
    return text.lower().replace("_", "-")
