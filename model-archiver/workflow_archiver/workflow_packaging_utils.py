"""The steps of archiving a workflow, under the names that scripts call them by."""

from __future__ import annotations

import argparse
import logging
import os
import re
import zipfile
from collections.abc import Iterable

from model_archiver import packing
from model_archiver.model_packaging_utils import MODEL_NAME_PATTERN, ModelExportUtils
from workflow_archiver.manifest_components.manifest import Manifest
from workflow_archiver.manifest_components.workflow import Workflow
from workflow_archiver.workflow_archiver_error import WorkflowArchiverError

logger = logging.getLogger(__name__)

MANIFEST_NAME = "WAR-INF/MANIFEST.json"


class WorkflowExportUtils:
    clean_temp_files = staticmethod(ModelExportUtils.clean_temp_files)
    make_dir = staticmethod(ModelExportUtils.make_dir)
    directory_filter = staticmethod(ModelExportUtils.directory_filter)
    file_filter = staticmethod(ModelExportUtils.file_filter)

    @staticmethod
    def get_archive_export_path(export_file_path: str, workflow_name: str) -> str:
        return os.path.join(export_file_path, f"{workflow_name}.war")

    @staticmethod
    def check_war_already_exists(
        workflow_name: str, export_file_path: str | None, overwrite: bool
    ) -> str:
        """The directory to write to, the current one by default.

        Raises WorkflowArchiverError if the archive is there and may not be overwritten.
        """
        directory = export_file_path or os.getcwd()
        path = WorkflowExportUtils.get_archive_export_path(directory, workflow_name)
        if os.path.exists(path):
            if not overwrite:
                raise WorkflowArchiverError(
                    f"{path} already exists.\n"
                    "Please specify --force/-f option to overwrite the workflow archive output"
                    " file.\nSee -h/--help for more details."
                )
            logger.warning("Overwriting %s ...", path)
        return directory

    @staticmethod
    def generate_workflow(workflow_args: argparse.Namespace) -> Workflow:
        return Workflow(workflow_args.workflow_name, workflow_args.spec_file, workflow_args.handler)

    @staticmethod
    def generate_manifest_json(args: argparse.Namespace) -> str:
        return str(Manifest(WorkflowExportUtils.generate_workflow(args)))

    @staticmethod
    def copy_artifacts(workflow_name: str, artifact_files: Iterable[str | None]) -> str:
        """A new directory `<somewhere>/<workflow_name>` with links to all files.

        The caller removes it, with its parent.
        Raises FileNotFoundError for a missing file, and removes the directory then.
        """
        with packing.new_stage(workflow_name) as stage:
            for path in filter(None, artifact_files):
                packing.stage_file(path, stage)
        return stage

    @staticmethod
    def archive(export_file: str, workflow_name: str, workflow_path: str, manifest: str) -> None:
        """Make `<export_file>/<workflow_name>.war` of a directory and the manifest."""
        path = WorkflowExportUtils.get_archive_export_path(export_file, workflow_name)
        packing.write_zip(path, workflow_path, MANIFEST_NAME, manifest, zipfile.ZIP_DEFLATED)

    @staticmethod
    def archive_dir(path: str, dst: zipfile.ZipFile) -> None:
        packing.add_to_zip(dst, path)

    @staticmethod
    def check_workflow_name_regex_or_exit(workflow_name: str) -> None:
        """Raises WorkflowArchiverError for a name that is no file name on some system."""
        if not re.fullmatch(MODEL_NAME_PATTERN, workflow_name):
            raise WorkflowArchiverError(
                "Workflow name contains special characters.\n"
                f"The allowed regular expression filter for workflow name is: {MODEL_NAME_PATTERN}"
            )

    @staticmethod
    def validate_inputs(workflow_name: str, export_path: str) -> None:
        WorkflowExportUtils.check_workflow_name_regex_or_exit(workflow_name)
        if not os.path.isdir(os.path.abspath(export_path)):
            raise WorkflowArchiverError(
                f"Given export-path {export_path} is not a directory."
                " Point to a valid export-path directory."
            )
