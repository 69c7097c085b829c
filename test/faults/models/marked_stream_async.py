"""As `marked_stream`, from a coroutine that others run beside."""

import asyncio

from ts.handler_utils.utils import send_intermediate_predict_response


class Handler:
    def initialize(self, context):
        pass

    async def handle(self, data, context):
        order = bytes(data[0].get("data") or data[0].get("body") or b"").decode()
        mark, _, rest = order.partition("\n")
        count, size = (int(word) for word in (rest or "3 1").split())
        for _ in range(count):
            await asyncio.sleep(0)
            send_intermediate_predict_response(
                [f"{mark};".ljust(size)], context.request_ids, "Intermediate", 200, context
            )
        return [f"{mark}."]
