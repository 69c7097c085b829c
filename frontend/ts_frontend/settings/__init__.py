"""Everything that can be configured, read once at start into one frozen `Settings`."""

from ts_frontend.settings.environment import detect_gpus
from ts_frontend.settings.loading import load_settings
from ts_frontend.settings.properties import format_properties
from ts_frontend.settings.settings import ConfigurationError, Settings

__all__ = ["ConfigurationError", "Settings", "detect_gpus", "format_properties", "load_settings"]
