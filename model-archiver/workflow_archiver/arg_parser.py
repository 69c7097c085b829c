"""The command line of `torch-workflow-archiver`."""

from __future__ import annotations

import argparse
import os


class ArgParser:
    @staticmethod
    def workflow_archiver_args_parser() -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog="torch-workflow-archiver",
            description="Pack a workflow into one archive for the model server.",
        )
        parser.add_argument(
            "--workflow-name",
            required=True,
            help="Name of the workflow and of the file: letters, digits, '_', '-' and '.', "
            "beginning with a letter or a digit.",
        )
        parser.add_argument(
            "--spec-file", required=True, help="YAML file with the workflow's models and graph."
        )
        parser.add_argument(
            "--handler", help="Python file with the functions that are nodes of the graph."
        )
        parser.add_argument(
            "--export-path",
            default=os.getcwd(),
            help="Existing directory for <name>.war (default: the current one).",
        )
        parser.add_argument("--extra-files", help="More files, separated by commas.")
        parser.add_argument(
            "-f", "--force", action="store_true", help="Overwrite an existing archive."
        )
        return parser
