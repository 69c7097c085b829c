"""A stream whose every chunk carries its request's mark.

Body: the mark, and on a second line how many chunks of which size, in bytes.
"""

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return None
    orders = [bytes(row.get("data") or row.get("body") or b"").decode() for row in data]
    marks = [order.partition("\n")[0] for order in orders]
    count, size = (int(word) for word in (orders[0].partition("\n")[2] or "3 1").split())
    for _ in range(count):
        pieces = [f"{mark};".ljust(size) for mark in marks]
        send_intermediate_predict_response(
            pieces, context.request_ids, "Intermediate", 200, context
        )
    return [f"{mark}." for mark in marks]
