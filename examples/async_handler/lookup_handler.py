"""An asynchronous handler: many requests at once in one worker, as long as all they do is wait."""

import asyncio
import json


class Lookup:
    def initialize(self, context):
        config = (context.model_yaml_config or {}).get("handler", {})
        self.delay_s = config.get("delay_s", 0.2)
        # The context is a copy for each request, so what they share belongs here.
        self.running = 0
        self.most_running = 0

    async def handle(self, data, context):
        """Waits for a "database" and answers what it said. data: one request (batchSize 1)."""
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            answer = await self.ask_database(bytes(data[0].get("body") or b"").decode())
        finally:
            self.running -= 1
        context.set_response_content_type(0, "application/json")
        return [json.dumps({"answer": answer, "most_at_once": self.most_running})]

    async def ask_database(self, question):
        """Stands for a call over the network: the time passes elsewhere."""
        await asyncio.sleep(self.delay_s)
        return question.upper()
