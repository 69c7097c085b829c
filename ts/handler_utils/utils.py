"""Streaming from a handler, and looking up a class by name."""

from __future__ import annotations

import importlib
import inspect
import os
from typing import Any

from ts.context import Context, RequestCancelled
from ts.protocol.batch_reply import encode_batch_reply
from ts.protocol.otf_message_handler import create_predict_response

__all__ = ["create_predict_response", "import_class", "send_intermediate_predict_response"]


def send_intermediate_predict_response(
    ret: list[Any], req_id_map: dict[int, str], message: str, code: int, context: Any = None
) -> None:
    """Send one piece of each request's answer now; the handler's return value is the last piece.

    Ranks other than 0 do nothing: one process of a parallel model speaks for all.
    Raises RequestCancelled when nobody reads the batch's answers any more, so that a stream ends
    with its client; let it pass.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    if isinstance(context, Context) and context.is_cancelled():
        raise RequestCancelled("nobody reads the answer any more")
    buffers = encode_batch_reply(ret, req_id_map, message, code, context, ts_stream_next=True)
    context.cl_socket.sendall(buffers[0] if len(buffers) == 1 else b"".join(buffers))


def import_class(class_name: str, module_prefix: str | None = None) -> type:
    """The class named `pkg.Class`, with a prefix `prefix.pkg.Class`.

    Raises ImportError for any miss.
    """
    module_name, _, name = class_name.rpartition(".")
    if module_prefix is not None:
        module_name = f"{module_prefix}.{module_name}" if module_name else module_prefix
    if not module_name:
        raise ImportError(f"{class_name} names no module")
    module = importlib.import_module(module_name)
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        raise ImportError(f"{module_name} has no class {name}")
    return found
