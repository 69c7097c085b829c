"""Streaming as the documentation shows it: intermediate responses, then the returned one."""

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if isinstance(data, list):
        for number in range(3):
            send_intermediate_predict_response(
                [f"piece {number};"], context.request_ids, "Intermediate Prediction success", 200,
                context,
            )  # fmt: skip
        return ["end"]
    return None
