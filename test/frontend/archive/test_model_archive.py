from __future__ import annotations

import os
from pathlib import Path

import pytest

from ts_frontend.archive.manifest import Manifest
from ts_frontend.archive.model_archive import ModelArchive
from ts_frontend.core.errors import InvalidModel


@pytest.fixture
def model(tmp_path: Path, manifest) -> Path:
    """An unpacked model whose manifest names a configuration file."""
    path = tmp_path / "model"
    (path / "MAR-INF").mkdir(parents=True)
    (path / "MAR-INF" / "MANIFEST.json").write_bytes(manifest(configFile="model.yaml"))
    return path


def opened(path: Path) -> ModelArchive:
    return ModelArchive(str(path), str(path), url="echo.mar", file_name="echo.mar")


def test_without_a_manifest(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    assert archive.manifest == Manifest()
    assert archive.handler == ""
    assert archive.config is None
    assert archive.warnings == ()


def test_handler_is_the_manifests(model: Path) -> None:
    assert opened(model).handler == "echo.py"
    assert repr(opened(model)) == f"<ModelArchive echo/1.0 {model}>"


def test_configuration(model: Path) -> None:
    (model / "model.yaml").write_text("\ufeffbatchSize: 3\nmaxWorkers: x\n")
    archive = opened(model)
    assert archive.config is not None
    assert archive.config.batch_size == 3
    assert list(archive.warnings) == [
        "model.yaml:2: maxWorkers should be an integer >= 0, not 'x' (str); ignored."
    ]


def test_empty_configuration_is_none(model: Path) -> None:
    (model / "model.yaml").write_bytes(b"")
    assert (opened(model).config, list(opened(model).warnings)) == (None, [])


def test_configuration_that_cannot_be_read(model: Path) -> None:
    config = model / "model.yaml"
    assert "is missing" in opened(model).warnings[0]
    config.write_bytes(b"a: \xff")
    assert "not UTF-8" in opened(model).warnings[0]
    config.write_bytes(b"#" * (300 << 10))
    assert "more than 262144 bytes" in opened(model).warnings[0]
    config.unlink()
    config.mkdir()
    assert "not a plain file" in opened(model).warnings[0]
    config.rmdir()
    os.mkfifo(config)
    assert "not a plain file" in opened(model).warnings[0]
    config.unlink()
    config.symlink_to(config)
    assert "cannot be read" in opened(model).warnings[0]
    assert opened(model).config is None


def test_manifest_that_cannot_be_read(model: Path) -> None:
    manifest = model / "MAR-INF" / "MANIFEST.json"
    manifest.write_bytes(b"{")
    with pytest.raises(InvalidModel, match="truncated"):
        opened(model)
    manifest.write_bytes(b" " * (2 << 20))
    with pytest.raises(InvalidModel, match="more than 1048576 bytes"):
        opened(model)
    manifest.unlink()
    os.mkfifo(manifest)
    with pytest.raises(InvalidModel, match="not a plain file"):
        opened(model)
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(InvalidModel, match="not a plain file"):
        opened(model)


def test_manifest_folder_that_is_a_file(model: Path) -> None:
    (model / "MAR-INF" / "MANIFEST.json").unlink()
    (model / "MAR-INF").rmdir()
    (model / "MAR-INF").write_bytes(b"")
    assert opened(model).manifest == Manifest()


def test_discard_follows_no_link(tmp_path: Path, model: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "installed_package").mkdir()
    (work / "model").symlink_to(model)
    archive = ModelArchive(str(work / "model"), str(work), url="model", file_name="model")
    archive.discard()
    assert not work.exists()
    assert (model / "MAR-INF" / "MANIFEST.json").exists()
    archive.discard()


def test_discard_that_fails_is_logged(model: Path, monkeypatch, caplog) -> None:
    def fails(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    archive = opened(model)
    monkeypatch.setattr("ts_frontend.archive.model_archive.shutil.rmtree", fails)
    archive.discard()
    assert "Cannot remove the unpacked archive" in caplog.text
