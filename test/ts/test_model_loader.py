"""From a model's folder to a started handler."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ts.model_loader import ModelLoader, ModelLoaderFactory, TsModelLoader


class RecordingMetrics:
    def __init__(self) -> None:
        self.ids: list = []

    def set_request_ids(self, ids) -> None:
        self.ids.append(ids)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The model's folder; its modules are forgotten afterwards."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - known:
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if Path(origin).is_relative_to(tmp_path):
            del sys.modules[name]


def load(folder: Path, handler: str, **options):
    return ModelLoaderFactory.get_model_loader().load("m", str(folder), handler, **options)


def test_factory_gives_a_loader():
    assert isinstance(ModelLoaderFactory.get_model_loader(), TsModelLoader)
    assert issubclass(TsModelLoader, ModelLoader)


def test_what_the_handler_sees_at_load(folder):
    (folder / "MAR-INF").mkdir()
    manifest = {"model": {"configFile": "model-config.yaml"}}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "model-config.yaml").write_text("handler: {word: hi}\n")
    (folder / "seen_handler.py").write_text(
        "class H:\n"
        "    def initialize(self, context):\n        self.seen = context\n"
        "    def handle(self, data, context):\n        return [self.seen is context]\n"
    )
    metrics = RecordingMetrics()
    service = load(folder, "seen_handler.py", gpu_id=2, batch_size=3, metrics_cache=metrics)
    context = service.context
    assert context.manifest == manifest
    assert context.model_yaml_config == {"handler": {"word": "hi"}}
    assert context.system_properties["gpu_id"] == 2
    assert context.system_properties["batch_size"] == 3
    assert context.metrics is metrics
    assert len(metrics.ids) == 1
    assert len(metrics.ids[0]) == 36
    assert service._entry_point([], context) == [True]


@pytest.mark.parametrize(("text", "config"), [("", None), ("a: 1", {"a": 1})])
def test_configuration_files(folder, text, config):
    (folder / "MAR-INF").mkdir()
    (folder / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"configFile": "c.yaml"}}')
    (folder / "c.yaml").write_text(text)
    (folder / "config_handler.py").write_text("def handle(data, context): pass")
    assert load(folder, "config_handler").context.model_yaml_config == config


def test_a_folder_without_manifest(folder):
    (folder / "bare_handler.py").write_text("def handle(data, context): pass")
    context = load(folder, "bare_handler").context
    assert context.manifest is None
    assert context.model_yaml_config == {}


def test_a_file_of_the_archive_wins_over_a_default_handler(folder):
    (folder / "text_classifier.py").write_text("def handle(data, context): return ['mine']")
    assert load(folder, "text_classifier")._entry_point([], None) == ["mine"]


def test_a_missing_handler_is_looked_for_among_the_default_ones(folder):
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_handler'"):
        load(folder, "no_such_handler")


def test_what_a_handler_could_not_import_is_the_reason_that_is_told(folder):
    (folder / "needs_more.py").write_text("import not_installed_here\n")
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_installed_here'"):
        load(folder, "needs_more")


def test_imported_classes_do_not_count(folder):
    (folder / "one_class.py").write_text(
        "from json import JSONDecoder\n"
        "from collections import OrderedDict\n"
        "class Mine:\n"
        "    def initialize(self, context): pass\n"
        "    def handle(self, data, context): return ['mine']\n"
    )
    service = load(folder, "one_class")
    assert service._entry_point([], None) == ["mine"]
    assert type(service._entry_point.__self__).__name__ == "Mine"


def test_an_envelope_wraps_the_handler_but_not_its_start(folder):
    (folder / "wrapped_handler.py").write_text(
        "loads = []\n"
        "def handle(data, context):\n"
        "    if data is None:\n        return loads.append(1)\n"
        "    return [str(row) for row in data]\n"
    )
    service = load(folder, "wrapped_handler", envelope="body")
    assert service._entry_point([{"data": 5}], None) == ["5"]
    assert sys.modules["wrapped_handler"].loads == [1]
