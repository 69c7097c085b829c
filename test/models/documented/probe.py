"""What a handler sees of a request, by type and value."""

import json


def show(value):
    if isinstance(value, dict):
        return {str(key): show(item) for key, item in value.items()}
    if isinstance(value, (bytes, bytearray)):
        return [type(value).__name__, bytes(value).hex()]
    return [type(value).__name__, value]


def handle(data, context):
    if data is None:
        return None
    return [
        json.dumps(
            {
                "row": show(row),
                "headers": context.get_all_request_header(index),
                "absent": context.get_request_header(index, "absent"),
                "has_id": isinstance(context.get_request_id(index), str),
                "status": context.get_response_status(index),
                "content_type": context.get_response_content_type(index),
                "properties": sorted(context.system_properties),
                "gpu_id": context.system_properties["gpu_id"],
                "batch_size": context.system_properties["batch_size"],
                "server_name": context.system_properties["server_name"],
                "config": context.model_yaml_config,
                "manifest": sorted(context.manifest["model"]),
            }
        )
        for index, row in enumerate(data)
    ]
