"""Archive a workflow: the command `torch-workflow-archiver`."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from workflow_archiver.arg_parser import ArgParser
from workflow_archiver.workflow_archiver_error import WorkflowArchiverError
from workflow_archiver.workflow_packaging_utils import WorkflowExportUtils

logger = logging.getLogger(__name__)


def generate_workflow_archive() -> None:
    """Write the archive that the command line asks for; ends the process with 1 if it cannot."""
    logging.basicConfig(format="%(levelname)s - %(message)s")
    args = ArgParser.workflow_archiver_args_parser().parse_args()
    package_workflow(args, WorkflowExportUtils.generate_manifest_json(args))


def package_workflow(args: argparse.Namespace, manifest: str) -> None:
    """Check what was asked for, gather the files, write the archive."""
    try:
        WorkflowExportUtils.validate_inputs(args.workflow_name, args.export_path)
        directory = WorkflowExportUtils.check_war_already_exists(
            args.workflow_name, args.export_path, args.force
        )
        extra_files = [part.strip() for part in (args.extra_files or "").split(",")]
        stage = WorkflowExportUtils.copy_artifacts(
            args.workflow_name, [args.spec_file, args.handler, *extra_files]
        )
        try:
            WorkflowExportUtils.archive(directory, args.workflow_name, stage, manifest)
        finally:
            WorkflowExportUtils.clean_temp_files([os.path.dirname(stage)])
        logger.info("Successfully exported workflow %s to %s", args.workflow_name, directory)
    except (WorkflowArchiverError, OSError) as error:
        logger.error(error)
        sys.exit(1)


if __name__ == "__main__":
    generate_workflow_archive()
