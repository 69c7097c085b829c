"""Small helpers that handlers import, and what all of the worker stands on."""
