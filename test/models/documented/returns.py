"""Returns or raises what the request names."""

import torch

from ts.utils.util import PredictionException


class Anything:
    pass


def with_header(context, key, value, answer="body"):
    context.set_response_header(0, key, value)
    return [answer]


def with_status(context, *arguments, **names):
    context.set_response_status(*arguments, **names)
    return ["body"]


def with_content_type(context, value):
    context.set_response_content_type(0, value)
    return ["<b>body</b>"]


def failing(error):
    raise error


ANSWERS = {
    "text": lambda context: ["text"],
    "bytes": lambda context: [b"\x00\xff"],
    "bytearray": lambda context: [bytearray(b"bytes")],
    "empty": lambda context: [""],
    "number": lambda context: [2],
    "float": lambda context: [1.5],
    "none": lambda context: [None],
    "true": lambda context: [True],
    "dict": lambda context: [{"a": 1, "b": [1, {"c": "\u00e9"}]}],
    "int-keys": lambda context: [{1: 2}],
    "list": lambda context: [[1, 2]],
    "tuple-inside": lambda context: [(1, 2)],
    "nan": lambda context: [float("nan")],
    "infinite": lambda context: [{"a": float("inf")}],
    "no-list": lambda context: "text",
    "tuple": lambda context: ("text",),
    "nothing": lambda context: None,
    "too-few": lambda context: [],
    "too-many": lambda context: ["a", "b"],
    "object": lambda context: [Anything()],
    "object-inside": lambda context: [{"a": Anything()}],
    "set": lambda context: [{1}],
    "zero-dim": lambda context: torch.tensor([1]),
    "refused": lambda context: failing(PredictionException("bad", 422)),
    "refused-plainly": lambda context: failing(PredictionException("bad")),
    "value-error": lambda context: failing(ValueError("x")),
    "key-error": lambda context: failing(KeyError("x")),
    "memory": lambda context: failing(MemoryError()),
    "cuda": lambda context: failing(RuntimeError("CUDA error: out of memory")),
    "cuda-value": lambda context: failing(ValueError("CUDA")),
    "status": lambda context: with_status(context, 404, "Gone away", 0),
    "status-by-name": lambda context: with_status(context, code=201),
    "content-type": lambda context: with_content_type(context, "text/html"),
    "header": lambda context: with_header(context, "X-Own", "1"),
    "header-twice": lambda context: (with_header(context, "X-Own", "1"),
                                     with_header(context, "X-Own", "2"))[1],
    "type-by-header": lambda context: with_header(context, "content-type", "a/b", {"a": 1}),
}  # fmt: skip


def handle(data, context):
    if not data:
        return None
    return ANSWERS[data[0]["body"]](context)
