"""A context without a server, and helpers that fill a model directory."""
