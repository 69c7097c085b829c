"""The steps of archiving a model, under the names that scripts call them by."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, MutableSet
from typing import Any

from model_archiver import packing
from model_archiver.manifest_components.manifest import Manifest, RuntimeType
from model_archiver.manifest_components.model import Model
from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_archiver_error import ModelArchiverError

logger = logging.getLogger(__name__)

MANIFEST_NAME = "MAR-INF/MANIFEST.json"
MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_\-.]*$"

archiving_options = {"tgz": ".tar.gz", "no-archive": "", "zip-store": ".mar", "default": ".mar"}

# Handlers that the server brings along, and what they take.
model_handlers = {
    "base_handler": "anything",
    "text_classifier": "text",
    "image_classifier": "vision",
    "object_detector": "vision",
    "image_segmenter": "vision",
    "dali_image_classifier": "vision",
    "vllm_handler": "text",
    "trt_llm_handler": "text",
}
_COMPILED_HANDLERS = ("BaseHandler", "TorchScriptHandler")


class ModelExportUtils:
    @staticmethod
    def get_archive_export_path(export_file_path: str, model_name: str, archive_format: str) -> str:
        return os.path.join(export_file_path, model_name + _suffix(archive_format))

    @staticmethod
    def check_mar_already_exists(
        model_name: str,
        export_file_path: str | None,
        overwrite: bool,
        archive_format: str = "default",
    ) -> str:
        """The directory to write to, the current one by default.

        Raises ModelArchiverError if the archive is there and may not be overwritten.
        """
        directory = export_file_path or os.getcwd()
        path = ModelExportUtils.get_archive_export_path(directory, model_name, archive_format)
        if os.path.exists(path):
            if not overwrite:
                raise ModelArchiverError(
                    f"{path} already exists.\n"
                    "Please specify --force/-f option to overwrite the model archive output file.\n"
                    "See -h/--help for more details."
                )
            logger.warning("Overwriting %s ...", path)
        return directory

    @staticmethod
    def find_unique(files: Iterable[str], suffix: str) -> str | None:
        """The one file that ends in `suffix`, None if there is none."""
        found = [file for file in files if file.endswith(suffix)]
        if len(found) > 1:
            raise ModelArchiverError(
                f"model-archiver expects only one {suffix} file in the folder."
                f" Found {len(found)} files {found} in model-path."
            )
        return found[0] if found else None

    @staticmethod
    def generate_model(modelcfg: ModelArchiverConfig) -> Model:
        return Model(
            model_name=modelcfg.model_name,
            serialized_file=modelcfg.serialized_file,
            handler=modelcfg.handler,
            model_file=modelcfg.model_file,
            model_version=modelcfg.version,
            requirements_file=modelcfg.requirements_file,
            config_file=modelcfg.config_file,
        )

    @staticmethod
    def generate_manifest_json(config: ModelArchiverConfig) -> str:
        return str(Manifest(config.runtime, ModelExportUtils.generate_model(config)))

    @staticmethod
    def clean_temp_files(temp_files: Iterable[str]) -> None:
        for path in temp_files:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.remove(path)

    @staticmethod
    def make_dir(d: str) -> None:
        os.makedirs(d, exist_ok=True)

    @staticmethod
    def copy_artifacts(model_name: str, runtime: str, **kwargs: str | None) -> str:
        """A new directory `<somewhere>/<model_name>` with links to all files.

        The caller removes it, with its parent.
        kwargs: `handler`, `extra_files`, and any other name for a path to one file.
        Raises FileNotFoundError for a missing file, and removes the directory then.
        """
        with packing.new_stage(model_name) as stage:
            _stage_artifacts(stage, runtime, kwargs)
        return stage

    @staticmethod
    def archive(
        export_file: str,
        model_name: str,
        model_path: str,
        manifest: str,
        archive_format: str = "default",
    ) -> None:
        """Make `<export_file>/<model_name>...` of the directory `model_path` and the manifest."""
        path = ModelExportUtils.get_archive_export_path(export_file, model_name, archive_format)
        if archive_format == "tgz":
            packing.write_tar_gz(path, model_path, model_name, MANIFEST_NAME, manifest)
        elif archive_format == "no-archive":
            packing.write_directory(path, model_path, MANIFEST_NAME, manifest)
        else:
            is_stored = archive_format == "zip-store"
            method = zipfile.ZIP_STORED if is_stored else zipfile.ZIP_DEFLATED
            packing.write_zip(path, model_path, MANIFEST_NAME, manifest, method)

    @staticmethod
    def archive_dir(path: str, dst: Any, archive_format: str, model_name: str) -> None:
        """Add the files below `path` to `dst`: an open zip or tar file, or a directory's path."""
        if archive_format == "tgz":
            packing.add_to_tar(dst, path, model_name)
        elif archive_format == "no-archive":
            packing.write_directory(dst, path)
        else:
            packing.add_to_zip(dst, path)

    @staticmethod
    def directory_filter(directory: str, unwanted_dirs: Iterable[str]) -> bool:
        """Whether a directory of this name goes into the archive."""
        return directory not in unwanted_dirs and not directory.startswith(".")

    @staticmethod
    def file_filter(current_file: str, files_to_exclude: MutableSet[str]) -> bool:
        """Whether a file of this name is wanted; the manifest is written by the archiver itself."""
        files_to_exclude.add("MANIFEST.json")
        return current_file not in files_to_exclude and not current_file.endswith(".pyc")

    @staticmethod
    def check_model_name_regex_or_exit(model_name: str) -> None:
        """Raises ModelArchiverError for a name that is no file name on some system."""
        if not re.fullmatch(MODEL_NAME_PATTERN, model_name):
            raise ModelArchiverError(
                "Model name contains special characters.\n"
                f"The allowed regular expression filter for model name is: {MODEL_NAME_PATTERN}"
            )

    @staticmethod
    def validate_inputs(model_name: str, export_path: str) -> None:
        ModelExportUtils.check_model_name_regex_or_exit(model_name)
        if not os.path.isdir(os.path.abspath(export_path)):
            raise ModelArchiverError(
                f"Given export-path {export_path} is not a directory."
                " Point to a valid export-path directory."
            )


def _suffix(archive_format: str) -> str:
    try:
        return archiving_options[archive_format]
    except KeyError:
        known = ", ".join(archiving_options)
        raise ModelArchiverError(
            f"Unknown archive format {archive_format!r}; it is one of {known}."
        ) from None


def _stage_artifacts(stage: str, runtime: str, files: dict[str, str | None]) -> None:
    find: dict[str, Callable[[str], str | None]] = {
        RuntimeType.PYTHON.value: _python_handler_file,
        RuntimeType.PYTHON3.value: _python_handler_file,
        RuntimeType.LSP.value: _compiled_handler_file,
    }
    for kind, path in files.items():
        if not path:
            continue
        if kind == "extra_files":
            packing.stage_extra_files(path, stage)
        elif kind == "handler":
            handler_file = find[RuntimeType(runtime).value](path)
            if handler_file is not None:
                packing.stage_file(handler_file, stage)
        else:
            packing.stage_file(path, stage)


def _python_handler_file(handler: str) -> str | None:
    """The file of `[dir/]file[.py][:function]`, None for a handler that the server has."""
    if handler in model_handlers:
        return None
    if ".py" in handler:
        # TorchServe's archiver looked for a file called `h.py:function` here and failed, though its
        # manifest and its server know that form. So the function comes off, unless the file exists.
        path, _, _ = handler.rpartition(":")
        return path if path.endswith(".py") and not os.path.exists(handler) else handler
    return handler.partition(":")[0] + ".py"


def _compiled_handler_file(handler: str) -> str | None:
    if handler in _COMPILED_HANDLERS:
        return None
    return handler.partition(":")[0] + (".dylib" if sys.platform == "darwin" else ".so")
