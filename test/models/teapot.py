"""Says by its status that it cannot do what it is asked."""


def handle(data, context):
    if data is None:
        return None
    for index in range(len(data)):
        context.set_response_status(418, "I am a teapot", index)
    return ["short and stout"] * len(data)
