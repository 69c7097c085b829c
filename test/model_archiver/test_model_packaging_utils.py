from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

import model_archiver
import workflow_archiver
from model_archiver.manifest_components.manifest import Manifest, RuntimeType
from model_archiver.manifest_components.model import Model
from model_archiver.model_archiver_error import ModelArchiverError
from model_archiver.model_packaging_utils import (
    ModelExportUtils,
    archiving_options,
    model_handlers,
)


def test_one_version_everywhere() -> None:
    server = Path(__file__).parents[2] / "ts" / "version.txt"
    assert model_archiver.__version__ == server.read_text().strip()
    assert workflow_archiver.__version__ == model_archiver.__version__


def test_tables() -> None:
    assert archiving_options == {
        "tgz": ".tar.gz",
        "no-archive": "",
        "zip-store": ".mar",
        "default": ".mar",
    }
    assert set(model_handlers) == {
        "base_handler",
        "text_classifier",
        "image_classifier",
        "object_detector",
        "image_segmenter",
        "dali_image_classifier",
        "vllm_handler",
        "trt_llm_handler",
    }


@pytest.mark.parametrize("archive_format", archiving_options)
def test_export_path(archive_format: str) -> None:
    path = ModelExportUtils.get_archive_export_path("/out", "m", archive_format)
    assert path == f"/out/m{archiving_options[archive_format]}"


def test_check_mar_already_exists(model_files: Path) -> None:
    assert ModelExportUtils.check_mar_already_exists("m", None, False) == str(model_files)
    assert ModelExportUtils.check_mar_already_exists("m", "out", False) == "out"
    (model_files / "out" / "m.mar").write_text("")
    assert ModelExportUtils.check_mar_already_exists("m", "out", True) == "out"
    assert ModelExportUtils.check_mar_already_exists("m", "out", False, "tgz") == "out"
    with pytest.raises(ModelArchiverError, match=r"out/m\.mar already exists"):
        ModelExportUtils.check_mar_already_exists("m", "out", False)


def test_find_unique() -> None:
    assert ModelExportUtils.find_unique(["a.txt"], ".pt") is None
    assert ModelExportUtils.find_unique(["a.txt", "b.pt"], ".pt") == "b.pt"
    with pytest.raises(ModelArchiverError, match=r"only one \.pt file in the folder\. Found 2"):
        ModelExportUtils.find_unique(["a.pt", "b.pt"], ".pt")


def test_copy_artifacts(model_files: Path) -> None:
    stage = ModelExportUtils.copy_artifacts(
        "m", "python", handler="h.py", extra_files="extra,t1.txt", vocabulary="r.txt", none=None
    )
    assert os.path.basename(stage) == "m"
    assert {"h.py", "a.txt", "t1.txt", "r.txt", "sub"} <= set(os.listdir(stage))
    ModelExportUtils.clean_temp_files([os.path.join(stage, "h.py"), os.path.dirname(stage)])
    assert os.listdir("temp") == []


def test_archive_dir(model_files: Path) -> None:
    expected = [".dot", "MANIFEST.json", "a.txt", "sub/b.txt", "sub/deep/c.txt"]
    with zipfile.ZipFile("out/x.zip", "w") as archive:
        ModelExportUtils.archive_dir("extra", archive, "default", "m")
    with zipfile.ZipFile("out/x.zip") as archive:
        assert archive.namelist() == expected
    with tarfile.open("out/x.tar", "w") as tar:
        ModelExportUtils.archive_dir("extra", tar, "tgz", "m")
    with tarfile.open("out/x.tar") as tar:
        assert tar.getnames() == [f"m/{name}" for name in expected]
    ModelExportUtils.make_dir("out/plain/dir")
    ModelExportUtils.archive_dir("extra", "out/plain/dir", "no-archive", "m")
    assert sorted(os.listdir("out/plain/dir")) == [".dot", "MANIFEST.json", "a.txt", "sub"]


def test_filters() -> None:
    names = ["x", ".git", "__pycache__", "ok"]
    wanted = [ModelExportUtils.directory_filter(name, ["x", "__pycache__"]) for name in names]
    assert wanted == [False, False, False, True]
    names = ["x", ".git", "a.pyc", "MANIFEST.json", "ok"]
    assert [ModelExportUtils.file_filter(name, {"x"}) for name in names] == [
        False,
        True,
        False,
        False,
        True,
    ]


def test_model_entry_with_extensions() -> None:
    model = Model("m", None, "dir/h.py", extensions={"a": 1})
    assert str(model) == '{"modelName": "m", "handler": "h.py", "extensions": {"a": 1}}'
    assert Manifest(RuntimeType.LSP, model).manifest_dict["runtime"] == "LSP"
    assert str(Model("m", None, None)) == '{"modelName": "m"}'
