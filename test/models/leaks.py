"""Answers what it gets, and keeps 128 KiB of each request for ever."""

kept = []


def handle(data, context):
    if data is None:
        return None
    kept.append(b"x" * (128 * 1024 * len(data)))
    return [row.get("data") or row.get("body") or b"" for row in data]
