"""Archive a model: the command `torch-model-archiver`, and the same for a given configuration.

The command's first word may also be one of `inspection.COMMANDS`.
"""

from __future__ import annotations

import logging
import os
import sys
from types import TracebackType

from model_archiver import inspection
from model_archiver.arg_parser import ArgParser
from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_archiver_error import ModelArchiverError
from model_archiver.model_packaging_utils import ModelExportUtils

logger = logging.getLogger(__name__)


def generate_model_archive(config: ModelArchiverConfig | None = None) -> None:
    """Write the archive of `config`, by default of the command line's arguments.

    Raises ModelArchiverError, which is logged too; FileNotFoundError for a missing input;
    ValueError for an unknown runtime.
    """
    if config is None:
        if sys.argv[1:2] and sys.argv[1] in inspection.COMMANDS:
            sys.exit(inspection.run(sys.argv[1:]))
        logging.basicConfig(format="%(levelname)s - %(message)s")
        # As a command: the same errors and exit status, but a sentence in place of a traceback.
        sys.excepthook = _report
        config = ArgParser.export_model_args_parser()
    manifest = ModelExportUtils.generate_manifest_json(config)
    package_model(config, manifest)


def package_model(config: ModelArchiverConfig, manifest: str) -> None:
    """Check what was asked for, gather the files, write the archive."""
    try:
        ModelExportUtils.validate_inputs(config.model_name, config.export_path)
        directory = ModelExportUtils.check_mar_already_exists(
            config.model_name, config.export_path, config.force, config.archive_format
        )
        stage = ModelExportUtils.copy_artifacts(
            config.model_name,
            config.runtime,
            serialized_file=config.serialized_file,
            model_file=config.model_file,
            handler=config.handler,
            extra_files=config.extra_files,
            requirements_file=config.requirements_file,
            config_file=config.config_file,
        )
        try:
            ModelExportUtils.archive(
                directory, config.model_name, stage, manifest, config.archive_format
            )
        finally:
            ModelExportUtils.clean_temp_files([os.path.dirname(stage)])
        logger.info("Successfully exported model %s to %s", config.model_name, directory)
    except ModelArchiverError as error:
        logger.error(error)
        raise


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, ModelArchiverError):
        return  # logged where it was raised
    if isinstance(error, (OSError, ValueError)):
        logger.error(error)
    else:
        sys.__excepthook__(kind, error, trace)


if __name__ == "__main__":
    generate_model_archive()
