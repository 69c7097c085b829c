"""An echo answers in the event loop; a model runs in one thread, as it would in one worker."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import tasks
import uvicorn
from common import CHUNKS, PORT, TASK
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

app = FastAPI()

if TASK == "echo":

    @app.post("/predict")
    async def predict(request: Request):
        return Response(await request.body(), media_type="application/octet-stream")

elif TASK == "stream":

    async def chunks():
        for chunk in CHUNKS:
            yield chunk

    @app.post("/predict")
    async def predict(request: Request):
        await request.body()
        return StreamingResponse(chunks(), media_type="text/plain")

else:
    work = tasks.load(TASK)
    thread = ThreadPoolExecutor(1)

    @app.post("/predict")
    async def predict(request: Request):
        body = await request.body()
        answers = await asyncio.get_running_loop().run_in_executor(thread, work, [body])
        return Response(answers[0], media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=PORT,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
