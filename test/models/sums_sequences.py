"""Adds up the numbers of each sequence, in rounds where the model works in rounds.

A body is a number; the answer is the sum of its sequence so far, as `<sum> <batch size> <pid>`. The
number 0 ends the sequence. With `continuousBatching` a request `n*k` is answered in k pieces, n
being added for each.
"""

import os

sums = {}
open_requests = {}  # request id -> [number, pieces left]


def _text(row):
    return bytes(row.get("data") or row.get("body")).decode()


def handle(data, context):
    if data is None:
        return None
    is_continuous = context.model_yaml_config.get("continuousBatching", False)
    answers, is_done = [], []
    for index, row in enumerate(data):
        request_id = context.get_request_id(index)
        if row:
            number, _, pieces = _text(row).partition("*")
            open_requests[request_id] = [int(number), int(pieces or 1)]
        number, pieces = open_requests[request_id]
        sequence = context.get_sequence_id(index) or request_id
        sums[sequence] = sums.get(sequence, 0) + number
        open_requests[request_id][1] = pieces - 1
        if number == 0:
            context.set_response_header(index, context.header_key_sequence_end, sequence)
        context.set_response_header(index, "x-sequence", sequence)
        answers.append(f"{sums[sequence]} {len(data)} {os.getpid()}\n")
        is_done.append(pieces <= 1)
        if is_done[-1]:
            del open_requests[request_id]
    if is_continuous:
        context.stopping_criteria = [lambda item, done=done: done for done in is_done]
    return answers
