"""Fails a whole batch if one of its bodies is `bad`, or returns too little if one is `short`."""


def handle(data, context):
    if data is None:
        return None
    bodies = [bytes(row.get("data") or row.get("body") or b"") for row in data]
    if b"bad" in bodies:
        raise ValueError("a bad apple")
    return bodies[1:] if b"short" in bodies else bodies
