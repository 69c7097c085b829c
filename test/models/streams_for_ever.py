"""A stream that ends with its client: ten thousand chunks, one every ten milliseconds.

The body `plain` gets a plain answer instead.
"""

import time

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return None
    if bytes(data[0].get("data") or data[0].get("body") or b"") == b"plain":
        return ["plain"] * len(data)
    for number in range(10_000):
        send_intermediate_predict_response(
            [f"chunk {number} "] * len(data), context.request_ids, "Intermediate", 200, context
        )
        time.sleep(0.01)
    return ["end"] * len(data)
