"""Answers the id that each request carries, in whatever form it came."""


def _id(row):
    value = row.get("data", row.get("body", b""))
    if isinstance(value, dict):
        return value["id"]
    text = value if isinstance(value, str) else bytes(value).decode()
    return text.rstrip()


def handle(data, context):
    if data is None:
        return None
    return [_id(row) for row in data]
