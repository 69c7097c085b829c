"""Pack a model's files and a manifest into one archive that a model server can register.

Standard library only: an archive is often built where neither the server nor torch is installed.
"""

from model_archiver.model_archiver import ModelArchiver
from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.version import __version__

__all__ = ["ModelArchiver", "ModelArchiverConfig", "__version__"]
