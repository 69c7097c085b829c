"""The archiver for programs."""

from __future__ import annotations

from model_archiver import model_packaging
from model_archiver.model_archiver_config import ModelArchiverConfig


class ModelArchiver:
    @staticmethod
    def generate_model_archive(config: ModelArchiverConfig) -> None:
        """Write the archive that `config` describes; raises as `model_packaging` does."""
        model_packaging.generate_model_archive(config)
