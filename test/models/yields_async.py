"""`yields` as an asynchronous generator of a class."""

import asyncio
from pathlib import Path


class Handler:
    def initialize(self, context):
        self.started = "Begin"

    async def handle(self, data, context):
        text = bytes(data[0].get("body") or b"").decode()
        if not text.startswith("forever:"):
            yield self.started
            for word in text.split():
                await asyncio.sleep(0)
                yield word
            return
        try:
            while True:
                await asyncio.sleep(0)
                yield "." * 1000
        finally:
            Path(text.removeprefix("forever:")).write_text("closed")  # noqa: ASYNC240  at the end of all
