from collections.abc import AsyncGenerator

import bentoml
from common import BATCH_SIZE, CHUNKS, TASK, WORKERS, load_texts


@bentoml.service(workers=WORKERS, traffic={"timeout": 60, "max_concurrency": 512})
class BenchmarkService:
    def __init__(self):
        self.work = load_texts() if TASK != "stream" else None

    if TASK == "stream":

        @bentoml.api
        async def predict(self, data: str) -> AsyncGenerator[str, None]:
            for chunk in CHUNKS:
                yield chunk.decode()

    elif BATCH_SIZE > 1:

        @bentoml.api(batchable=True, max_batch_size=BATCH_SIZE, max_latency_ms=1000)
        def predict(self, data: list[str]) -> list[str]:
            return self.work(data)

    else:

        @bentoml.api
        def predict(self, data: str) -> str:
            return self.work([data])[0]
