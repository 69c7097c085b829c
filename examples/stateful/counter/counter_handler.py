"""A running total for each sequence of requests, kept in the worker's memory."""

from collections import OrderedDict


class Counter:
    def initialize(self, context):
        config = (context.model_yaml_config or {}).get("handler", {})
        self.max_sequences = config.get("max_sequences", 1000)
        self.totals = OrderedDict()  # sequence id -> total, the one used longest ago first

    def handle(self, data, context):
        """Adds each request's number to the total of its sequence and answers the total.

        A batch holds at most one request of each sequence.
        """
        return [self.add(row, index, context) for index, row in enumerate(data)]

    def add(self, row, index, context):
        sequence = context.get_sequence_id(index)  # the client's, or a new one
        context.set_response_header(index, context.header_key_sequence_id, sequence)
        total = self.totals.pop(sequence, 0) + int(row.get("data") or row.get("body") or 0)
        if context.get_request_header(index, context.header_key_sequence_end) == "true":
            # Tells the server, too, that no more will come.
            context.set_response_header(index, context.header_key_sequence_end, sequence)
        else:
            self.totals[sequence] = total
            if len(self.totals) > self.max_sequences:  # of clients that never said the end
                self.totals.popitem(last=False)
        return f"{total}\n"
