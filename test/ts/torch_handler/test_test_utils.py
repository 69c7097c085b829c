"""The helpers with which handler authors try their handlers without a server."""

import pytest
import torch

from ts.metrics.metrics_store import MetricsStore
from ts.torch_handler.image_classifier import ImageClassifier
from ts.torch_handler.unit_tests.test_utils.mock_context import MockContext
from ts.torch_handler.unit_tests.test_utils.model_dir import REPO_DIR, copy_files, download_model


def test_the_default_context():
    context = MockContext()
    assert context.manifest == {"model": {"serializedFile": "model.pt", "modelFile": "model.py"}}
    assert context.system_properties["model_dir"] == "ts/torch_handler/unit_tests/models/tmp"
    assert ("gpu_id" in context.system_properties) == torch.cuda.is_available()
    assert context.model_yaml_config == {}
    assert isinstance(context.metrics, MetricsStore)
    assert context.metrics.model_name == "mnist"


def test_a_context_for_given_files(tmp_path):
    (tmp_path / "config.yaml").write_text("handler: {key: 5}")
    context = MockContext(
        model_pt_file=None,
        model_file=None,
        model_dir=str(tmp_path),
        model_yaml_config_file="config.yaml",
    )
    assert context.manifest == {"model": {}}
    assert context.model_yaml_config == {"handler": {"key": 5}}


def test_headers_are_true_while_explaining():
    context = MockContext()
    assert context.get_request_header(1, "explain") is False
    context.explain = True
    assert context.get_request_header(1, "explain") is True
    assert context.get_request_header(0, "explain") is False
    assert context.get_request_header(1, "") is False


def test_a_handler_runs_with_it(tmp_path, save_torchscript, mean_colour, picture):
    save_torchscript(mean_colour)
    context = MockContext(model_dir=str(tmp_path), model_file=None)
    handler = ImageClassifier()
    handler.initialize(context)
    (answer,) = handler.handle([{"data": picture()}], context)
    assert next(iter(answer)) == "0"


def test_files_are_copied_under_new_names(tmp_path):
    (tmp_path / "a.txt").write_text("content")
    target = tmp_path / "models"
    target.mkdir()
    copy_files(tmp_path, target, {"a.txt": "b.txt"})
    assert (target / "b.txt").read_text() == "content"
    assert (REPO_DIR / "ts" / "torch_handler").is_dir()


def test_a_model_is_downloaded_once(tmp_path):
    source = tmp_path / "model.pth"
    source.write_bytes(b"weights")
    target = tmp_path / "models"
    target.mkdir()
    download_model(source.as_uri(), target)
    source.write_bytes(b"changed")
    download_model(source.as_uri(), target)
    assert (target / "model.pth").read_bytes() == b"weights"
    assert [path.name for path in target.iterdir()] == ["model.pth"]


def test_only_known_protocols_are_downloaded(tmp_path):
    with pytest.raises(ValueError, match="https"):
        download_model("ftp://example.org/model.pth", tmp_path)
