"""`EnvironmentCache`: the Python packages that archives ask for, installed once for all alike.

An environment is a folder named by what it was made from: the requirements, the files that they
name, the interpreter, the options of pip. Models and restarts of the server share it. It counts
from the moment its last file, the mark, is there; one without it was broken off, and is made anew.
A lock keeps two servers from making the same one at once.

There are two kinds: a folder of packages that is put on the worker's path, and a virtual
environment (`useVenv`), which also has the interpreter's own packages.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import stat
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from ts_frontend.core.errors import ModelSetupFailed

logger = logging.getLogger(__name__)

SHOWN_LINES = 10  # of pip, in an error
MAX_REQUIREMENTS_BYTES = 1 << 20
LOCK_PAUSE_S = 0.1
_MARK = ".complete"
_FORMAT = 1  # of the folders; another number makes all of them anew
# Options and forms by which a line of requirements names something that lies beside it.
_LOCAL = re.compile(
    r"(?:-r|-c|-e|--requirement|--constraint|--editable)[ =]\s*(\S+)|(\S*/\S*|\S+\.whl)"
)


@dataclass(frozen=True, slots=True)
class Environment:
    """python:   the interpreter to run, "" for the server's.
    packages: a folder for its path, "" for none.
    """

    python: str = ""
    packages: str = ""


class EnvironmentCache:
    """folder:   where environments are kept, this user's alone.
    python:      the interpreter of the workers.
    venv_script: makes a virtual environment in the folder that it is given.
    timeout_s:   for one environment, with the wait for another server that makes it.
    """

    def __init__(
        self,
        folder: str,
        python: str,
        venv_script: str,
        *,
        environment: Mapping[str, str],
        pip_options: str = "",
        timeout_s: float = 600,
    ) -> None:
        self._folder = folder
        self._python = python
        self._venv_script = venv_script
        self._pip_options = shlex.split(pip_options)
        self._timeout_s = timeout_s
        # What is on the workers' path is not installed, whatever pip would see of it.
        self._environment = {
            **{name: value for name, value in environment.items() if name != "PYTHONPATH"},
            "PIP_NO_INPUT": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self._python_version: str | None = None

    async def prepare(self, model_dir: str, requirements: str, *, has_venv: bool) -> Environment:
        """The environment for the file `requirements` in `model_dir`, made if there is none.

        Raises ModelSetupFailed; what was begun is gone then.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._prepare(model_dir, requirements, has_venv)
        except TimeoutError:
            raise ModelSetupFailed(
                f"The packages of {requirements} were not installed within {self._timeout_s:g} s "
                "(dependency_timeout)."
            ) from None
        except OSError as error:
            raise ModelSetupFailed(f"The packages of {requirements}: {error}.") from error

    async def _prepare(self, model_dir: str, requirements: str, has_venv: bool) -> Environment:
        self._open_folder()
        if self._python_version is None:
            words = [self._python, "-c", "import sys; print(sys.version)"]
            self._python_version = "\n".join(await self._run(words, model_dir, requirements))
        path = os.path.join(self._folder, self._key(model_dir, requirements, has_venv))
        async with _locked(f"{path}.lock"):
            if not _is_complete(path):
                await self._make(path, model_dir, requirements, has_venv)
        if has_venv:
            return Environment(python=os.path.join(path, "bin", "python"))
        return Environment(packages=path)

    def _open_folder(self) -> None:
        """Raises ModelSetupFailed if somebody else could put code of his own into it."""
        os.makedirs(self._folder, 0o700, exist_ok=True)
        status = os.stat(self._folder)
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ModelSetupFailed(
                f"{self._folder} (environment_cache) belongs to another user or may be written to "
                "by others; choose a folder of this user's own."
            )

    def _key(self, model_dir: str, requirements: str, has_venv: bool) -> str:
        content = _read(os.path.join(model_dir, requirements))
        made_from = [
            _FORMAT,
            "venv" if has_venv else "packages",
            os.path.realpath(self._python) if not has_venv else self._python,
            self._python_version,
            self._pip_options,
            hashlib.sha256(content).hexdigest(),
            _local_files(model_dir, content.decode("utf-8", "replace")),
        ]
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]

    async def _make(self, path: str, model_dir: str, requirements: str, has_venv: bool) -> None:
        logger.info("Installing the packages of %s into %s", requirements, path)
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
        python, where = self._python, ["-U", "-t", path]
        try:
            if has_venv:
                await self._run([python, self._venv_script, path], model_dir, requirements)
                python = os.path.join(path, "bin", "python")
                where = ["-U", "--upgrade-strategy", "only-if-needed"]
            else:
                os.mkdir(path, 0o700)
            pip = [python, "-m", "pip", "install", *where, *self._pip_options]
            await self._run([*pip, "-r", requirements], model_dir, requirements)
            _mark_complete(path)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        logger.info("The packages of %s are installed.", requirements)

    async def _run(self, command: Sequence[str], folder: str, requirements: str) -> list[str]:
        """The last lines that it printed. Raises ModelSetupFailed with them if it failed."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            cwd=folder,
            start_new_session=True,
        )
        lines: deque[str] = deque(maxlen=SHOWN_LINES)
        try:
            async for line in _lines(process):
                lines.append(line)
                logger.info("%s: %s", requirements, line)
            status = await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        if status != 0:
            raise ModelSetupFailed(
                f"The packages of {requirements} could not be installed (exit code {status}):\n"
                + "\n".join(lines)
            )
        return list(lines)


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    output = process.stdout
    if output is None:
        return
    while True:
        try:
            raw = await output.readline()
        except ValueError:  # longer than the reader's buffer; it has been dropped
            continue
        if not raw:
            return
        if line := raw.decode("utf-8", "replace").rstrip():
            yield line


@contextlib.asynccontextmanager
async def _locked(path: str) -> AsyncIterator[None]:
    """For this process alone; waits for as long as the caller lets it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            await asyncio.sleep(LOCK_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def _is_complete(path: str) -> bool:
    return os.path.exists(os.path.join(path, _MARK))


def _mark_complete(path: str) -> None:
    with open(os.path.join(path, _MARK), "x"):
        pass


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_REQUIREMENTS_BYTES + 1)
    except OSError as error:
        name = os.path.basename(path)
        raise ModelSetupFailed(
            f"The archive names {name} as its requirements, which cannot be read: {error.strerror}."
        ) from error
    if len(content) > MAX_REQUIREMENTS_BYTES:
        raise ModelSetupFailed(
            f"{os.path.basename(path)} has more than {MAX_REQUIREMENTS_BYTES} bytes."
        )
    return content


def _local_files(model_dir: str, text: str) -> list[str]:
    """What stands for the files beside the requirements that these name: a change of one is a
    change of the environment. A folder stands for itself, so it is shared with nobody.
    """
    found = []
    for line in text.splitlines():
        match = _LOCAL.search(line.partition("#")[0].strip())
        if match is None:
            continue
        path = os.path.join(model_dir, match[1] or match[2])
        if os.path.isdir(path):
            found.append(os.path.realpath(path))
        elif os.path.isfile(path):
            with open(path, "rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found


def default_folder(environ: Mapping[str, str]) -> str:
    """Where environments are kept when no setting says it."""
    cache = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "torchserve", "environments")
