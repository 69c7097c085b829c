"""Pack a workflow's specification and functions into one archive for the model server."""

from workflow_archiver.version import __version__

__all__ = ["__version__"]
