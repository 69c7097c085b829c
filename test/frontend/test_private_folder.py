"""The folder of one server: kept while its process lives; what was killed leaves it to the next."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import ts_frontend
from ts_frontend.private_folder import PrivateFolder, remove_abandoned

KILLED = """
import os, sys
from ts_frontend.private_folder import PrivateFolder
print(PrivateFolder.create([sys.argv[1]], 100).path, flush=True)
os.kill(os.getpid(), 9)
"""


def leave_behind(parent: Path) -> Path:
    """The folder of a process that took it and was killed."""
    source = os.path.dirname(os.path.dirname(ts_frontend.__file__))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(parent)],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == -9, done.stderr
    return Path(done.stdout.strip())


def unpack(parent: Path, token: str) -> Path:
    path = parent / "models" / token.ljust(32, "0")
    path.mkdir(parents=True)
    (path / "weights.pt").write_bytes(b"x")
    return path


def remove(parent: Path) -> list[str]:
    return sorted(remove_abandoned(str(parent), str(parent / "models")))


@pytest.fixture
def folder(short_path: Path) -> PrivateFolder:
    return PrivateFolder.create([str(short_path)], 100)


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("p")


def test_it_is_open_to_its_user_alone(folder: PrivateFolder) -> None:
    assert stat.S_IMODE(os.stat(folder.path).st_mode) == 0o700
    folder.remove()
    assert not os.path.exists(folder.path)


def test_one_in_use_is_left_alone(short_path: Path, folder: PrivateFolder) -> None:
    kept = unpack(short_path, folder.token)
    assert remove(short_path) == []
    assert os.path.isdir(folder.path)
    assert kept.is_dir()


def test_one_of_a_killed_process_is_removed_with_what_it_unpacked(short_path: Path) -> None:
    left = leave_behind(short_path)
    token = left.name.removeprefix("ts-")
    gone = unpack(short_path, token)
    other = "f" if token[0] != "f" else "0"
    foreign = [unpack(short_path, other + token[1:]), short_path / "models" / f"{token}.mine"]
    foreign[1].mkdir()
    linked = short_path / "models" / token.ljust(32, "1")
    linked.symlink_to(foreign[0])
    (left / ".ts.sock.9000").touch()
    assert remove(short_path) == sorted([str(gone), str(left)])
    assert not left.exists()
    assert not gone.exists()
    assert all(path.is_dir() for path in (*foreign, linked))


def test_a_number_that_has_a_new_process_keeps_nothing(short_path: Path) -> None:
    left = leave_behind(short_path)
    (left / ".owner").write_text(f"{os.getpid()}\n")
    assert remove(short_path) == [str(left)]


def test_folders_that_are_none_of_ours_are_left_alone(short_path: Path) -> None:
    (short_path / "ts-0123abcd").mkdir()
    (short_path / "ts-mine").mkdir()
    (short_path / "ts-mine" / ".owner").touch()
    (short_path / "other").mkdir()
    (short_path / "other" / ".owner").touch()
    (short_path / "ts-0123abce").touch()
    (short_path / "ts-0123abcf").symlink_to(short_path / "other")
    before = sorted(short_path.iterdir())
    assert remove(short_path) == []
    assert sorted(short_path.iterdir()) == before
    assert remove(short_path / "missing") == []


def test_a_parent_that_is_too_long_or_missing_is_passed_over(short_path: Path) -> None:
    long = short_path / ("x" * 80)
    long.mkdir()
    parents = [str(short_path / "missing"), str(long), str(short_path)]
    folder = PrivateFolder.create(parents, len(str(short_path)) + 20)
    assert os.path.dirname(folder.path) == str(short_path)
    assert list(long.iterdir()) == []
    folder.remove()
    with pytest.raises(OSError, match="too long or not writable"):
        PrivateFolder.create(parents[:1], 100)
