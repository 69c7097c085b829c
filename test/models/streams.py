"""Sends as many intermediate chunks as the body says, then the last one."""

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return None
    count = int(bytes(data[0].get("body") or b"3"))
    for number in range(count):
        send_intermediate_predict_response(
            [f"chunk {number} "] * len(data), context.request_ids, "Intermediate", 200, context
        )
    return ["end"] * len(data)
