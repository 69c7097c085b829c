from __future__ import annotations

import argparse
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from workflow_archiver import __version__
from workflow_archiver.workflow_archiver_error import WorkflowArchiverError
from workflow_archiver.workflow_packaging import generate_workflow_archive
from workflow_archiver.workflow_packaging_utils import WorkflowExportUtils

BASE = ("--workflow-name", "w", "--spec-file", "dir/spec.yaml")


@pytest.fixture
def workflow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dir").mkdir()
    for name in ("dir/spec.yaml", "dir/functions.py", "a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "out").mkdir()
    (tmp_path / "temp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    return tmp_path


@pytest.fixture
def run(workflow_files: Path, monkeypatch: pytest.MonkeyPatch):
    """run(arguments...) is the command; what it leaves in the temporary directory is an error."""

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["torch-workflow-archiver", *arguments])
        try:
            generate_workflow_archive()
        finally:
            assert os.listdir("temp") == []

    return run


def manifest(path: str) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("WAR-INF/MANIFEST.json"))


def test_archive(run) -> None:
    run(
        *BASE,
        "--handler",
        "dir/functions.py",
        "--export-path",
        "out",
        "--extra-files",
        "a.txt, b.txt",
    )
    with zipfile.ZipFile("out/w.war") as archive:
        names = ["a.txt", "b.txt", "functions.py", "spec.yaml", "WAR-INF/MANIFEST.json"]
        assert archive.namelist() == names
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        assert archive.read("spec.yaml") == b"dir/spec.yaml"
    found = manifest("out/w.war")
    assert list(found) == ["createdOn", "workflow", "archiverVersion"]
    assert list(found["workflow"].items()) == [
        ("workflowName", "w"),
        ("specFile", "spec.yaml"),
        ("handler", "functions.py"),
    ]
    assert found["archiverVersion"] == __version__


def test_graph_of_models_needs_no_handler(run) -> None:
    run(*BASE)
    assert manifest("w.war")["workflow"] == {"workflowName": "w", "specFile": "spec.yaml"}


def test_overwriting(run, caplog) -> None:
    run(*BASE, "--export-path", "out")
    with pytest.raises(SystemExit) as refused:
        run(*BASE, "--export-path", "out")
    assert refused.value.code == 1
    assert "out/w.war already exists.\nPlease specify --force/-f option" in caplog.text
    run(*BASE, "--export-path", "out", "--force", "--extra-files", "a.txt")
    assert "Overwriting out/w.war ..." in caplog.text
    with zipfile.ZipFile("out/w.war") as archive:
        assert "a.txt" in archive.namelist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workflow-name", "a b", "--spec-file", "a.txt"), "Workflow name contains special"),
        (("--workflow-name", "../a", "--spec-file", "a.txt"), "Workflow name contains special"),
        ((*BASE, "--export-path", "nowhere"), "Given export-path nowhere is not a directory."),
        (("--workflow-name", "w", "--spec-file", "none"), "No such file or directory: 'none'"),
        ((*BASE, "--handler", "none.py"), "No such file or directory: 'none.py'"),
        ((*BASE, "--extra-files", "a.txt,dir"), "Is a directory: 'dir'"),
    ],
)
def test_refused(run, caplog, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit) as refused:
        run(*arguments)
    assert refused.value.code == 1
    assert message in caplog.text
    assert os.listdir("out") == []


@pytest.mark.parametrize("arguments", [(), ("--workflow-name", "w"), (*BASE, "--runtime", "x")])
def test_usage(run, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as refused:
        run(*arguments)
    assert refused.value.code == 2


def test_functions_behind_the_command(workflow_files: Path) -> None:
    arguments = argparse.Namespace(workflow_name="w", spec_file="dir/spec.yaml", handler=None)
    text = WorkflowExportUtils.generate_manifest_json(arguments)
    stage = WorkflowExportUtils.copy_artifacts("w", ["a.txt", "dir/spec.yaml"])
    assert sorted(os.listdir(stage)) == ["a.txt", "spec.yaml"]
    WorkflowExportUtils.archive("out", "w", stage, text)
    assert manifest("out/w.war") == json.loads(text)
    with zipfile.ZipFile("out/x.war", "w") as archive:
        WorkflowExportUtils.archive_dir("dir", archive)
    with zipfile.ZipFile("out/x.war") as archive:
        assert archive.namelist() == ["functions.py", "spec.yaml"]
    WorkflowExportUtils.clean_temp_files([os.path.dirname(stage)])
    assert os.listdir("temp") == []
    with pytest.raises(WorkflowArchiverError):
        WorkflowExportUtils.validate_inputs("w", "nowhere")
