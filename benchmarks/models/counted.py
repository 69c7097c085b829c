"""Takes SERVICE_MS (of the model's configuration) for a batch and remembers which requests it ran.

A body is the request's name, answered as it came; `?` is answered by all names so far, one a line.
"""

import time

names = []


def handle(data, context):
    if data is None:
        return None
    bodies = [bytes(row.get("data") or row.get("body") or b"").decode() for row in data]
    if bodies == ["?"]:
        return ["\n".join(names)]
    names.extend(bodies)
    options = context.model_yaml_config.get("handler", {})
    seconds = options.get("service_ms", 10) + options.get("item_ms", 0) * len(bodies)
    time.sleep(seconds / 1000)
    return bodies
