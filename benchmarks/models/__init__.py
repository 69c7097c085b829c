"""The models that are served. The files run inside every server, whatever serves."""
