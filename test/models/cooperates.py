"""Works for as many seconds as the body says, and stops when nobody waits for the answer."""

import time


def handle(data, context):
    if data is None:
        return None
    seconds = float(bytes(data[0].get("data") or data[0].get("body") or b"0"))
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if context.is_cancelled():
            return ["stopped"] * len(data)
        time.sleep(0.01)
    return [f"worked {seconds:g}"] * len(data)
