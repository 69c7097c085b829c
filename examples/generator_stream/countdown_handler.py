"""A handler that answers with generators: what they yield is sent at once."""

import time

from ts.utils.util import PredictionException


class Countdown:
    def initialize(self, context):
        config = (context.model_yaml_config or {}).get("handler", {})
        self.delay_s = config.get("delay_s", 0)

    def handle(self, data, context):
        """One generator for each request. They take turns, and each ends by itself."""
        return [self.count(start_of(row)) for row in data]

    def count(self, start):
        for number in range(start, 0, -1):
            yield f"{number} "
            time.sleep(self.delay_s)  # stands for the work that a model does for its next piece
        yield "liftoff"


def start_of(row):
    """The number in the request. Raises PredictionException, the answer to the whole batch."""
    body = row.get("data") or row.get("body") or b""
    text = body if isinstance(body, str) else bytes(body).decode("utf-8", "replace")
    if not text.isdecimal():
        raise PredictionException(f"A number is expected, not {text!r}.", 400)
    return int(text)
