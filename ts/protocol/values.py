"""From the bytes of an input to what a handler sees of it."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

logger = logging.getLogger(__name__)


def is_decoding_wanted() -> bool:
    """Whether inputs are decoded by their content type (`decode_input_request`)."""
    return os.environ.get("TS_DECODE_INPUT_REQUEST", "true") == "true"


def decode_value(content_type: str, body: bytearray) -> Any:
    """JSON as an object, text as str, all else as it came; so too what cannot be decoded."""
    try:
        if content_type == "application/json":
            # An empty body of this type is usual (a GET) and not worth a warning.
            return json.loads(body) if body else body
        if content_type.startswith("text"):
            return body.decode()
    except (ValueError, RecursionError) as error:
        logger.warning("An input of type %s is passed on as bytes: %s", content_type, error)
    return body
