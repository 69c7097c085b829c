"""Does with an example what its README says, in a folder where nothing else lies.

The README's own command lines are run, so that they stay true: those that pack (`load_example`,
`served`), and those that ask (`served.ask`).
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import ROOT, SOURCE_PATHS, RunningServer, start_server
from wheels import make_wheel

from ts.context import RequestProcessor
from ts.metrics.metrics_store import MetricsStore
from ts.model_loader import ModelLoaderFactory
from ts.service import Service

EXAMPLES = ROOT / "examples"
# What they need is there at once: they import no torch.
SERVED = (
    "async_handler",
    "custom_metrics",
    "echo_stream",
    "generator_stream",
    "image_thumbnail",
    "requirements",
    "stateful/counter",
)
# What pip finds in place of the package that `requirements` asks for: version to greatest unit.
HUMANIZE = {"4.9.0": (24, "YB"), "4.15.0": (30, "QB")}
HUMANIZE_STAND_IN = """
__version__ = {version!r}

def naturalsize(value):
    power, name = {unit!r}
    return f"{{value / 10**power:.1f}} {{name}}"
"""
COMMANDS = {
    "python": [],
    "torch-model-archiver": [
        "-c",
        "from model_archiver.model_packaging import generate_model_archive as g; g()",
    ],
    "torchserve": ["-m", "ts.model_server"],
}


def readme_commands(folder: str) -> list[str]:
    """The command lines in the README's bash blocks, in order."""
    text = (EXAMPLES / folder / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


class Workplace:
    """Where the READMEs' commands run: `examples/` is there, as at the root of the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._packed: set[str] = set()
        (folder / "examples").symlink_to(EXAMPLES)
        (folder / "bin").mkdir()
        for name, words in COMMANDS.items():
            script = folder / "bin" / name
            script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *words])} "$@"\n')
            script.chmod(0o755)

    def run(self, line: str) -> bytes:
        """What the command prints; it has to succeed."""
        paths = os.pathsep.join(SOURCE_PATHS)
        search = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        result = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env={**os.environ, "PATH": search, "PYTHONPATH": paths},
            capture_output=True,
            timeout=100,
            check=False,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout!r}\n{result.stderr.decode()}"
        return result.stdout

    def pack(self, folder: str) -> list[Path]:
        """The archives that the README of `examples/<folder>` makes before they are served."""
        commands = readme_commands(folder)
        packing = [line for line in commands if line.startswith("torch-model-archiver")]
        if folder not in self._packed:
            for line in commands[: commands.index(packing[-1]) + 1]:
                self.run(line)
            self._packed.add(folder)
        words = [shlex.split(line) for line in packing]
        names = [each[each.index("--model-name") + 1] for each in words]
        return [self.folder / "model_store" / f"{name}.mar" for name in names]


class LoadedExample:
    """A packed example with its handler: rows in, answers out."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @property
    def handler(self) -> object:
        return self.service._entry_point.__self__

    def handle(self, rows: list[dict], headers: dict | None = None) -> list:
        """The handler's answers to one batch; each row is what one request carries."""
        context = self.service.context
        request_ids = {index: f"request-{index}" for index in range(len(rows))}
        context.request_ids = request_ids
        context.request_processor = [RequestProcessor(dict(headers or {})) for _ in rows]
        context.metrics = MetricsStore(request_ids, context.model_name)
        return self.service._entry_point(rows, context)

    def status(self, index: int) -> int:
        return self.service.context.get_response_status(index)[0]


class ServedExamples:
    """The examples of SERVED in one server."""

    def __init__(self, server: RunningServer, workplace: Workplace) -> None:
        self.server = server
        self._workplace = workplace

    def ask(self, folder: str) -> list[str]:
        """What the README's requests are answered with, in order."""
        if shutil.which("curl") is None:
            pytest.skip("the READMEs ask with curl, which is not installed")
        answers = []
        for line in readme_commands(folder):
            if "curl " in line:
                for port, address in (
                    ("8080", self.server.inference),
                    ("8081", self.server.management),
                    ("8082", self.server.metrics),
                ):
                    line = line.replace(f"http://127.0.0.1:{port}", address)
                line = line.replace("curl ", "curl --silent --show-error --max-time 30 ")
                answers.append(self._workplace.run(line).decode("utf-8", "replace"))
        return answers

    def file(self, name: str) -> bytes:
        """What one of the requests has written."""
        return (self._workplace.folder / name).read_bytes()


@pytest.fixture(scope="session")
def examples() -> Path:
    return EXAMPLES


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="session")
def served(
    workplace: Workplace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedExamples]:
    archives = [archive for folder in SERVED for archive in workplace.pack(folder)]
    wheels = tmp_path_factory.mktemp("wheels")
    for version, unit in HUMANIZE.items():
        source = HUMANIZE_STAND_IN.format(version=version, unit=unit)
        make_wheel(wheels, "humanize", version, source)
    server = start_server(
        tmp_path_factory.mktemp("server"),
        workplace.folder / "model_store",
        flags=("--models", *(archive.name for archive in archives)),
        default_workers_per_model=1,
        metrics_config=EXAMPLES / "custom_metrics" / "metrics.yaml",
        model_metrics_auto_detect="true",
        install_py_dep_per_model="true",
        environment_cache=tmp_path_factory.mktemp("environments"),
        pip_options=f"--no-index --find-links {wheels}",
    )
    try:
        for archive in archives:
            server.wait_ready(archive.stem)
        yield ServedExamples(server, workplace)
    finally:
        server.stop()


@pytest.fixture
def load_example(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], LoadedExample]]:
    """load_example("folder"): packs as its README says and loads the result in this process."""
    known = set(sys.modules)

    def load(name: str) -> LoadedExample:
        (archive,) = workplace.pack(name)
        folder = tmp_path / archive.stem
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        # A worker runs inside the archive and finds its modules there.
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        loader = ModelLoaderFactory.get_model_loader()
        manifest = (folder / "MAR-INF" / "MANIFEST.json").read_text()
        handler = re.search(r'"handler": "(.*?)"', manifest)
        assert handler is not None
        return LoadedExample(loader.load(archive.stem, str(folder), handler[1], None, 8))

    yield load
    # The next example brings modules of its own, some under the same names.
    for name in set(sys.modules) - known:
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if Path(origin).is_relative_to(tmp_path):
            del sys.modules[name]
