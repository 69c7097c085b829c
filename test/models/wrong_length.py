"""Answers one item more than it was asked for."""


def handle(data, context):
    if data is None:
        return None
    return ["x"] * (len(data) + 1)
