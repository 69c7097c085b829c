import numpy as np
import tasks
from common import BATCH_SIZE, DELAY_S, GRPC_PORT, PORT, TASK
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

work = tasks.load(TASK)


@batch
def infer(body):
    answers = work([bytes(element) for element in body[:, 0]])
    return {"answer": np.array(answers, dtype=object).reshape(-1, 1)}


if __name__ == "__main__":
    server = TritonConfig(
        http_address="127.0.0.1",
        http_port=PORT,
        grpc_address="127.0.0.1",
        grpc_port=GRPC_PORT,
        allow_metrics=False,
        log_verbose=0,
    )
    delay_us = int(DELAY_S * 1e6) if BATCH_SIZE > 1 else 0
    model = ModelConfig(
        max_batch_size=BATCH_SIZE, batcher=DynamicBatcher(max_queue_delay_microseconds=delay_us)
    )
    with Triton(config=server) as triton:
        triton.bind(
            "benchmark",
            infer,
            [Tensor(name="body", dtype=bytes, shape=(1,))],
            [Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=model,
        )
        triton.serve()
