"""What a served program is told, by environment variables. Standard library only."""

import base64
import os

import tasks

TASK = os.environ["APP_TASK"]
BATCH_SIZE = int(os.environ["APP_BATCH_SIZE"])
DELAY_S = float(os.environ["APP_DELAY_MS"]) / 1000
WORKERS = int(os.environ["APP_WORKERS"])
PORT = int(os.environ["APP_PORT"])
GRPC_PORT = int(os.environ["APP_GRPC_PORT"])
CHUNKS = tasks.CHUNKS


def load_texts():
    """The task for APIs that speak JSON: a list of texts in, a list of texts out."""
    if TASK == "echo":
        return tasks.echo
    work = tasks.load(TASK)
    decode = base64.b64decode if TASK in ("cnn", "resnet") else str.encode
    return lambda texts: [answer.decode() for answer in work([decode(text) for text in texts])]
