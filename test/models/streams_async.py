"""An asynchronous handler: as many chunks as the body says, each after a turn of the loop."""

import asyncio

from ts.handler_utils.utils import send_intermediate_predict_response


class Handler:
    def initialize(self, context):
        pass

    async def handle(self, data, context):
        count = int(bytes(data[0].get("body") or b"0"))
        for number in range(count):
            await asyncio.sleep(0)
            send_intermediate_predict_response(
                [f"chunk {number} "], context.request_ids, "Intermediate", 200, context
            )
        return ["end"]
