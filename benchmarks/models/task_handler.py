"""Serves the task that the model's configuration names."""

import tasks


class TaskHandler:
    def initialize(self, context):
        self.work = tasks.load(context.model_yaml_config["handler"]["task"])

    def handle(self, data, context):
        answers = self.work([bytes(row.get("body") or row.get("data")) for row in data])
        return [answer.decode() for answer in answers]
