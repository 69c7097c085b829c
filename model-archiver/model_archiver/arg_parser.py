"""The command line of `torch-model-archiver`."""

from __future__ import annotations

import argparse
import os

from model_archiver.manifest_components.manifest import RuntimeType
from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_packaging_utils import archiving_options, model_handlers


class ArgParser:
    @staticmethod
    def export_model_args_parser() -> ModelArchiverConfig:
        """The process's arguments; a wrong one ends the process with status 2."""
        return ModelArchiverConfig.from_args(_parser().parse_args())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torch-model-archiver",
        description="Pack a model's files into one archive for the model server.",
        epilog="To look at an archive: torch-model-archiver inspect FILE, or verify FILE.",
    )
    parser.add_argument(
        "--model-name",
        required=True,
        help="Name of the model and of the file: letters, digits, '_', '-' and '.', "
        "beginning with a letter or a digit.",
    )
    parser.add_argument(
        "--handler",
        required=True,
        help="A default handler (" + ", ".join(model_handlers) + ") or a handler's file, "
        "as in dir/my_handler.py or dir/my_handler.py:function.",
    )
    parser.add_argument("-v", "--version", required=True, help="Version of the model, any text.")
    parser.add_argument(
        "--serialized-file", help="The weights: .pt, .pth, .onnx or whatever the handler loads."
    )
    parser.add_argument(
        "--model-file", help="Python file with the model's class, for weights without code."
    )
    parser.add_argument(
        "--extra-files",
        help="More files, separated by commas. May hold wildcards; of a directory the content "
        "is packed.",
    )
    parser.add_argument(
        "--runtime",
        choices=[runtime.value for runtime in RuntimeType],
        default=RuntimeType.PYTHON.value,
        help="What runs the handler (default: %(default)s).",
    )
    parser.add_argument(
        "--export-path",
        default=os.getcwd(),
        help="Existing directory for the archive (default: the current one).",
    )
    parser.add_argument(
        "--archive-format",
        choices=list(archiving_options),
        default="default",
        help="default: <name>.mar, compressed; zip-store: <name>.mar, not compressed; "
        "tgz: <name>.tar.gz; no-archive: the plain directory <name>.",
    )
    parser.add_argument("-f", "--force", action="store_true", help="Overwrite an existing archive.")
    parser.add_argument(
        "-r", "--requirements-file", help="Python packages that the model needs, as pip lists them."
    )
    parser.add_argument("-c", "--config-file", help="YAML file with the model's configuration.")
    return parser
