"""Answers its body once five requests are in the handler at the same time."""

import asyncio


class Handler:
    def initialize(self, context):
        self.here = 0
        self.all_here = asyncio.Event()

    async def handle(self, data, context):
        self.here += 1
        if self.here == 5:
            self.all_here.set()
        await self.all_here.wait()
        return [bytes(data[0]["body"]).decode()]
