"""Answers what the context says of each request, as JSON, and sets headers of its own."""

import json


def handle(data, context):
    if data is None:
        return None
    answers = []
    for index in range(len(data)):
        headers = context.get_all_request_header(index)
        context.set_response_content_type(index, "application/json")
        context.set_response_header(index, "x-probe", f"item {index}")
        status = headers.get("want-status")
        if status:
            context.set_response_status(int(status), "as asked", index)
        answers.append(
            json.dumps(
                {
                    "headers": {
                        key: value for key, value in headers.items() if isinstance(value, str)
                    },
                    "request_id": context.get_request_id(index),
                    "batch": len(data),
                    "properties": {
                        key: context.system_properties[key] for key in ("gpu_id", "batch_size")
                    },
                }
            )
        )
    return answers
