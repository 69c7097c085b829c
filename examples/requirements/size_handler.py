"""A handler that is one function and needs a package that only its archive asks for."""

import json

import humanize

from ts.utils.util import PredictionException

MAX_DIGITS = 100


def handle(data, context):
    """Answers a number of bytes, as text, the way a person would say it."""
    if not data:  # the call that initializes
        return None
    context.set_response_content_type(0, "application/json")
    size = humanize.naturalsize(number_in(data[0]))
    return [json.dumps({"size": size, "humanize": humanize.__version__})]


def number_in(row):
    body = row.get("body") or row.get("data") or b""
    text = body if isinstance(body, str) else bytes(body).decode("utf-8", "replace")
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise PredictionException(
            f"A number of at most {MAX_DIGITS} digits is expected, not {text[:40]!r}.", 400
        )
    return int(text)
