"""A handler that answers in pieces: every word of the request comes back as a chunk of its own."""

import time

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    """Sends each word of the text in `data` as soon as it is "made"; returns the end of the line.

    data: one request (the batch size of model-config.yaml is 1), or None when the model is loaded.
    """
    if data is None:
        return None
    delay_s = (context.model_yaml_config or {}).get("handler", {}).get("delay_s", 0)
    words = body_text(data[0]).split() or ["(nothing)"]
    for word in words:
        send_intermediate_predict_response(
            [word + " "], context.request_ids, "Intermediate Prediction success", 200, context
        )
        time.sleep(delay_s)  # stands for the work that a model does for its next piece
    return ["\n"]


def body_text(row):
    """The request's text; a body without a text content type arrives as bytes."""
    body = row.get("data") or row.get("body") or ""
    return body if isinstance(body, str) else bytes(body).decode("utf-8", "replace")
