import queue
import threading

import pytest
import torch

from ts.handler_utils.hf_batch_streamer import TextIteratorStreamerBatch

WORDS = ["Hello", " world", " you", "!", "\n", "\u4f60", "\u597d", " a", "b", "<end>"]


class Tokenizer:
    """Token n is the n-th of WORDS."""

    def decode(self, tokens, skip_special_tokens=False):
        text = "".join(WORDS[token] for token in tokens)
        return text.replace("<end>", "") if skip_special_tokens else text


def put_all(streamer, *steps):
    for step in steps:
        streamer.put(torch.tensor(step))
    streamer.end()


def texts(streamer):
    return [[entry["text"] for entry in entries] for entries in streamer]


def test_words_come_when_they_are_complete():
    streamer = TextIteratorStreamerBatch(Tokenizer(), batch_size=2)
    put_all(streamer, [0, 5], [1, 6], [2, 5])
    assert texts(streamer) == [
        ["", "\u4f60"],
        ["Hello ", "\u597d"],
        ["world ", "\u4f60"],
        ["you", ""],
    ]


def test_a_line_comes_whole_and_begins_anew():
    streamer = TextIteratorStreamerBatch(Tokenizer(), batch_size=1)
    put_all(streamer, [0], [4], [7], [8])
    assert texts(streamer) == [[""], ["Hello\n"], [" "], [""], ["ab"]]


def test_the_texts_add_up():
    streamer = TextIteratorStreamerBatch(Tokenizer(), 2, skip_special_tokens=True)
    put_all(streamer, [[0, 1], [5, 6]], [2, 3], [4, 7], [9, 8], [1, 9])
    parts = texts(streamer)
    assert "".join(part[0] for part in parts) == "Hello world you\n world"
    assert "".join(part[1] for part in parts) == "\u4f60\u597d! ab"


def test_the_prompt_can_be_left_out():
    streamer = TextIteratorStreamerBatch(Tokenizer(), batch_size=1, skip_prompt=True)
    put_all(streamer, [[0, 1, 2]], [7], [8])
    assert "".join(part[0] for part in texts(streamer)) == " ab"
    put_all(streamer, [[0]], [3])  # the same streamer again
    assert "".join(part[0] for part in texts(streamer)) == "!"


def test_another_batch_size_is_refused():
    streamer = TextIteratorStreamerBatch(Tokenizer(), batch_size=2)
    with pytest.raises(ValueError, match="2 sequences"):
        streamer.put(torch.tensor([1]))


def test_waiting_is_limited():
    streamer = TextIteratorStreamerBatch(Tokenizer(), batch_size=1, timeout=0.01)
    with pytest.raises(queue.Empty):
        next(streamer)


def test_generation_in_a_thread():
    streamer = TextIteratorStreamerBatch(Tokenizer(), batch_size=1)
    thread = threading.Thread(target=put_all, args=(streamer, [0], [1], [3]))
    thread.start()
    assert "".join(part[0] for part in texts(streamer)) == "Hello world!"
    thread.join()
