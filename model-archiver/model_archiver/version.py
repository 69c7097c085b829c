"""The archiver's version, which every archive carries as `archiverVersion`."""

from pathlib import Path

__version__ = Path(__file__).with_name("version.txt").read_text(encoding="utf-8").strip()
