"""The worker runtime, and everything that a handler may import."""

from ts.version import __version__

__all__ = ["__version__"]
