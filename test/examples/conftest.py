"""Packs an example the way its README does and loads it the way a worker does, in this process."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_archiver import ModelArchiver, ModelArchiverConfig
from ts.context import RequestProcessor
from ts.metrics.metrics_store import MetricsStore
from ts.model_loader import ModelLoaderFactory
from ts.service import Service

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


class LoadedExample:
    """A packed example with its handler: rows in, answers out."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def handle(self, rows: list[dict], headers: dict | None = None) -> list:
        """The handler's answers to one batch; each row is what one request carries."""
        context = self.service.context
        request_ids = {index: f"request-{index}" for index in range(len(rows))}
        context.request_ids = request_ids
        context.request_processor = [RequestProcessor(dict(headers or {})) for _ in rows]
        context.metrics = MetricsStore(request_ids, context.model_name)
        return self.service._entry_point(rows, context)


@pytest.fixture(scope="session")
def examples() -> Path:
    return EXAMPLES


@pytest.fixture
def load_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., LoadedExample]]:
    """load_example(model_name, **files): packs these files of `examples/` and loads the result."""
    known = set(sys.modules)

    def load(model_name: str, **files: str) -> LoadedExample:
        config = ModelArchiverConfig(
            model_name=model_name,
            version="1.0",
            export_path=str(tmp_path),
            archive_format="no-archive",
            **files,
        )
        ModelArchiver.generate_model_archive(config)
        folder = tmp_path / model_name
        # A worker runs inside the archive and finds its modules there.
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        service = ModelLoaderFactory.get_model_loader().load(
            model_name, str(folder), Path(files["handler"]).name, None, 8
        )
        return LoadedExample(service)

    yield load
    # The next example brings modules of its own, some under the same names.
    for name in set(sys.modules) - known:
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if Path(origin).is_relative_to(tmp_path):
            del sys.modules[name]
