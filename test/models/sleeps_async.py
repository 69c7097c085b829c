"""An asynchronous handler that takes as many seconds as the body says; it need not ask anything."""

import asyncio


class Handler:
    def initialize(self, context):
        pass

    async def handle(self, data, context):
        seconds = float(bytes(data[0].get("data") or data[0].get("body") or b"0"))
        await asyncio.sleep(seconds)
        return [f"slept {seconds:g}"]
