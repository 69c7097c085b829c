"""Answers with the chunks of `tasks`, each sent as soon as it is made."""

import tasks

from ts.handler_utils.utils import send_intermediate_predict_response

TEXTS = [chunk.decode() for chunk in tasks.CHUNKS]


def handle(data, context):
    if data is None:
        return None
    for text in TEXTS[:-1]:
        send_intermediate_predict_response(
            [text] * len(data),
            context.request_ids,
            "Intermediate Prediction success",
            200,
            context,
        )
    return [TEXTS[-1]] * len(data)
