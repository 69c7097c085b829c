"""Packages that archives ask for: installed once, whole or not at all, from local wheels."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import wait_until
from wheels import make_wheel

from ts_frontend.archive.environments import Environment, EnvironmentCache, default_folder
from ts_frontend.core.errors import ModelSetupFailed

SCRIPT = Path(__file__).resolve().parents[3] / "ts" / "utils" / "setup_model_venv.py"


class Place:
    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.wheels = folder / "wheels"
        self.model = folder / "model"
        self.model.mkdir()
        make_wheel(self.wheels, "tinything", "1.0", "VALUE = 'one'\n")
        self.ask("tinything==1.0")

    def ask(self, text: str, name: str = "requirements.txt") -> None:
        (self.model / name).write_text(text + "\n")

    def new(self, **more: Any) -> EnvironmentCache:
        settings = {"pip_options": f"--no-index --find-links {self.wheels}", "timeout_s": 60}
        return EnvironmentCache(
            str(self.cache),
            sys.executable,
            str(SCRIPT),
            environment={"PATH": os.environ["PATH"], "HOME": str(self.cache.parent)},
            **{**settings, **more},
        )

    async def prepare(self, cache: EnvironmentCache | None = None, **how: Any) -> Environment:
        how = {"has_venv": False, **how}
        return await (cache or self.new()).prepare(str(self.model), "requirements.txt", **how)

    def folders(self) -> list[Path]:
        return [path for path in self.cache.iterdir() if path.is_dir()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def run(python: str, code: str, path: str = "") -> str:
    return subprocess.run(
        [python, "-c", code],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()


async def test_packages_go_into_a_folder_that_the_next_server_finds(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = await place.prepare()
    assert first.python == ""
    code = "import tinything; print(tinything.VALUE)"
    assert await asyncio.to_thread(run, sys.executable, code, first.packages) == "one"
    assert "Successfully installed tinything-1.0" in caplog.text
    caplog.clear()
    assert await place.prepare() == first
    assert "tinything" not in caplog.text  # nothing was installed


async def test_other_requirements_have_an_environment_of_their_own(place: Place) -> None:
    make_wheel(place.wheels, "tinything", "2.0", "VALUE = 'two'\n")
    first = await place.prepare()
    place.ask("tinything==2.0")
    second = await place.prepare()
    assert first != second
    assert (Path(first.packages) / "tinything.py").read_text() == "VALUE = 'one'\n"
    assert (Path(second.packages) / "tinything.py").read_text() == "VALUE = 'two'\n"


async def test_a_file_that_the_requirements_name_counts(place: Place) -> None:
    make_wheel(place.wheels, "tinything", "2.0", "VALUE = 'two'\n")
    place.ask("-r more.txt")
    place.ask("tinything==1.0", "more.txt")
    first = await place.prepare()
    place.ask("tinything==2.0", "more.txt")
    assert await place.prepare() != first


async def test_a_virtual_environment_has_its_packages_and_the_interpreters(place: Place) -> None:
    made = await place.prepare(has_venv=True)
    assert made.packages == ""
    code = "import tinything, yaml, sys; print(tinything.VALUE, sys.prefix)"
    said = await asyncio.to_thread(run, made.python, code)
    assert said == f"one {Path(made.python).parents[1]}"


async def test_two_who_ask_at_once_install_once(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = await asyncio.gather(place.prepare(), place.prepare())
    assert first == second
    assert caplog.text.count("Successfully installed") == 1


async def test_what_cannot_be_installed_is_told_in_pips_words_and_leaves_nothing(
    place: Place,
) -> None:
    place.ask("no_such_package==3.1")
    with pytest.raises(ModelSetupFailed, match="No matching distribution found for no_such_pack"):
        await place.prepare()
    assert place.folders() == []


async def test_what_was_broken_off_is_made_anew(place: Place) -> None:
    first = await place.prepare()
    (Path(first.packages) / ".complete").unlink()
    (Path(first.packages) / "tinything.py").write_text("half a f")
    assert await place.prepare() == first
    assert (Path(first.packages) / "tinything.py").read_text() == "VALUE = 'one'\n"


class SlowPip:
    """An interpreter whose pip never ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "slow-python"
        self.pid_file = folder / "pid"
        self.path.write_text(
            f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\n'
            f"echo $$ > {self.pid_file}; echo Collecting everything; exec sleep 600\n"
        )
        self.path.chmod(0o700)

    def is_running(self) -> bool:
        try:
            os.kill(int(self.pid_file.read_text()), 0)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return False
        return True


async def test_an_installation_has_a_deadline(place: Place, tmp_path: Path) -> None:
    slow = SlowPip(tmp_path)
    cache = place.new(timeout_s=1)
    cache._python = str(slow.path)
    began_s = time.monotonic()
    with pytest.raises(ModelSetupFailed, match=r"within 1 s \(dependency_timeout\)"):
        await place.prepare(cache)
    assert time.monotonic() - began_s < 10
    await wait_until(lambda: not slow.is_running())
    assert place.folders() == []


async def test_one_who_gives_up_leaves_no_pip_behind(place: Place, tmp_path: Path) -> None:
    slow = SlowPip(tmp_path)
    cache = place.new()
    cache._python = str(slow.path)
    task = asyncio.create_task(place.prepare(cache))
    await wait_until(slow.is_running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not slow.is_running()
    assert place.folders() == []


async def test_a_cache_that_others_may_write_to_is_not_used(place: Place) -> None:
    place.cache.mkdir()
    place.cache.chmod(0o777)
    with pytest.raises(ModelSetupFailed, match="may be written to by others"):
        await place.prepare()


async def test_requirements_that_are_not_there_are_the_archives_fault(place: Place) -> None:
    (place.model / "requirements.txt").unlink()
    with pytest.raises(ModelSetupFailed, match=r"names requirements\.txt .* cannot be read"):
        await place.prepare()


def test_where_environments_are_kept_unless_a_setting_says_it() -> None:
    assert default_folder({"XDG_CACHE_HOME": "/c"}) == "/c/torchserve/environments"
    assert default_folder({}).endswith("/.cache/torchserve/environments")
