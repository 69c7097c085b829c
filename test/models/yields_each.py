"""A batch of requests, each with a generator of its own: the body's letters, then the batch's size.

An empty body gets a plain answer.
"""


def handle(data, context):
    if data is None:
        return None
    texts = [bytes(row.get("body") or b"").decode() for row in data]
    return [letters(text, len(data)) if text else "nothing" for text in texts]


def letters(text, batch_size):
    yield from text
    yield f"/{batch_size}"
