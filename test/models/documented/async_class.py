"""An asynchronous handler (asyncCommunication) with intermediate responses."""

import asyncio

from ts.handler_utils.utils import send_intermediate_predict_response


class AsyncHandler:
    def initialize(self, context):
        self.greeting = "hello"

    async def handle(self, data, context):
        name = data[0]["body"].decode()
        for _ in range(2):
            await asyncio.sleep(0)
            send_intermediate_predict_response(
                [f"{self.greeting} "], context.request_ids, "Intermediate Prediction success", 200,
                context,
            )  # fmt: skip
        return [name]
