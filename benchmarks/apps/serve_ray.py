import signal
import sys
import threading

import ray
import tasks
from common import BATCH_SIZE, CHUNKS, DELAY_S, PORT, TASK, WORKERS
from ray import serve
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

LOGGING = {"enable_access_log": False, "log_level": "WARNING"}


async def chunks():
    for chunk in CHUNKS:
        yield chunk


@serve.deployment(
    num_replicas=WORKERS,
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 0},
    logging_config=LOGGING,
)
class Benchmark:
    def __init__(self):
        self.work = tasks.load(TASK)

    @serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=DELAY_S)
    async def work_on_batch(self, bodies):
        return self.work(bodies)

    async def __call__(self, request: Request):
        body = await request.body()
        if TASK == "stream":
            return StreamingResponse(chunks(), media_type="text/plain")
        if BATCH_SIZE > 1:
            answer = await self.work_on_batch(body)
        else:
            answer = self.work([body])[0]
        return Response(answer, media_type="application/octet-stream")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ray.init(
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        object_store_memory=200 << 20,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config=LOGGING)
    serve.run(Benchmark.bind(), route_prefix="/predict")
    threading.Event().wait()
