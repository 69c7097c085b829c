"""Raises for every request."""


def handle(data, context):
    if data is None:
        return None
    raise ValueError("this handler always fails")
