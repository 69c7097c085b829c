"""Answers after as many seconds as the body says; a batch takes as long as its slowest request."""

import time


def handle(data, context):
    if data is None:
        return None
    durations_s = [float(bytes(row.get("data") or row.get("body") or b"0")) for row in data]
    time.sleep(max(durations_s))
    return [f"slept {duration_s:g}" for duration_s in durations_s]
