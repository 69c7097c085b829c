"""Occupies as many MiB as its file `weight` says; answers the body."""

import os

kept = None


def handle(data, context):
    global kept
    if data is None:
        path = os.path.join(context.system_properties["model_dir"], "weight")
        with open(path) as file:
            kept = os.urandom(1 << 20) * int(file.read())
        return None
    return [row.get("data") or row.get("body") or b"" for row in data]
