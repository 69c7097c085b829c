"""Yields the words of the body; "forever:<file>" yields until it is closed, and writes the file."""

from pathlib import Path


def handle(data, context):
    if data is None:
        return
    text = bytes(data[0].get("body") or b"").decode()
    context.set_response_content_type(0, "text/plain")
    if not text.startswith("forever:"):
        yield from text.split()
        return
    try:
        while True:
            yield "." * 1000
    except GeneratorExit:
        Path(text.removeprefix("forever:")).write_text("closed")
        raise
