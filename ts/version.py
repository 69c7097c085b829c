"""The version of the server, as `describe` and the API descriptions tell it."""

from pathlib import Path

__version__ = Path(__file__).with_name("version.txt").read_text(encoding="ascii").strip()
