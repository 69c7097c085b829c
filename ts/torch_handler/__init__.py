"""Handlers that come with the server; a model archive names one, or brings its own."""
