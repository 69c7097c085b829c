"""A gRPC load client on grpc.aio: unary calls of TorchServe's inference service, or of anything
that takes and gives bytes.

As a program it reads a Job as JSON from stdin. Messages are written and read by hand: three fields
do not need generated code.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load.outcome import Outcome, latencies

PREDICTIONS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
_CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Job:
    """connections: callers at the same time, all on one channel. The files hold whole messages.

    seconds: 0 for one call of each.
    """

    target: str
    method: str
    message_file: str
    answer_file: str
    connections: int
    seconds: float


def predictions_request(model: str, body: bytes) -> bytes:
    """org.pytorch.serve.grpc.inference.PredictionsRequest: model_name 1, input 3 {"data": body}"""
    entry = _field(1, b"data") + _field(2, body)
    return _field(1, model.encode()) + _field(3, entry)


def prediction_response(body: bytes) -> bytes:
    """org.pytorch.serve.grpc.inference.PredictionResponse: prediction 1"""
    return _field(1, body)


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


async def run(job: Job, message: bytes, answer: bytes) -> Outcome:
    import grpc

    errors: Counter[str] = Counter()
    total_ms: list[float] = []
    began = time.perf_counter()
    deadline = began + job.seconds

    async with grpc.aio.insecure_channel(job.target) as channel:
        call: Any = channel.unary_unary(job.method)

        async def keep_calling() -> None:
            is_over = False
            while not is_over:
                sent = time.perf_counter()
                try:
                    got = await call(message, timeout=_CALL_TIMEOUT_S)
                except grpc.aio.AioRpcError as error:
                    errors[error.code().name.lower()] += 1
                    await asyncio.sleep(0.01)  # else a dead server would be asked in a tight loop
                else:
                    if got == answer:
                        total_ms.append((time.perf_counter() - sent) * 1000)
                    else:
                        errors["body"] += 1
                is_over = time.perf_counter() >= deadline

        await asyncio.gather(*(keep_calling() for _ in range(job.connections)))
    elapsed_s = time.perf_counter() - began
    requests = len(total_ms)
    seen: Any = latencies(total_ms)
    return Outcome("grpc.aio", requests, elapsed_s, dict(errors), **seen)


if __name__ == "__main__":
    the_job = Job(**json.load(sys.stdin))
    contents = [Path(name).read_bytes() for name in (the_job.message_file, the_job.answer_file)]
    print(asyncio.run(run(the_job, *contents)).line())
