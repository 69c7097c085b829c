"""Refuses to initialise, with the error that a worker reports instead of dying."""


class Handler:
    def initialize(self, context):
        raise RuntimeError("this handler never loads")

    def handle(self, data, context):
        return data
