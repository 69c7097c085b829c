"""Base classes for handlers that run as several ranks."""
