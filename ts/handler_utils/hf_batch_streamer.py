"""Stream the texts of a batch while `transformers` generates them.

`model.generate(..., streamer=streamer)` runs in a thread and puts tokens; the handler iterates and
gets text. Nothing of `transformers` is imported: a streamer is anything with `put` and `end`.
"""

from __future__ import annotations

import queue
from typing import Any


class TextIteratorStreamerBatch:
    """Iterates over lists of `{"text": ...}`, one entry per sequence of the batch.

    An entry holds what became final since the last one, maybe nothing: words are held back until
    they end, because the next token may still change how they read. Iteration stops when
    generation ends.

    skip_prompt: leave out the first tokens put, which are the prompts.
    timeout: seconds to wait for the next list, then `queue.Empty`; None waits.
    decode_kwargs: passed on to `tokenizer.decode`.
    """

    def __init__(
        self,
        tokenizer: Any,
        batch_size: int,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.skip_prompt = skip_prompt
        self.timeout = timeout
        self.decode_kwargs = decode_kwargs
        self._next_is_prompt = True
        self._tokens: list[list[int]] = [[] for _ in range(batch_size)]  # of the current line
        self._sent: list[int] = [0] * batch_size  # characters of the current line handed out
        self._texts: queue.Queue[list[dict[str, str]] | None] = queue.Queue()

    def put(self, value: Any) -> None:
        """Take new tokens: [batch_size] or [batch_size, tokens] ids.

        Raises ValueError for another batch size.
        """
        if value.shape[0] != self.batch_size:
            raise ValueError(f"expected tokens for {self.batch_size} sequences, got {value.shape}")
        if self.skip_prompt and self._next_is_prompt:
            self._next_is_prompt = False
            return
        self._next_is_prompt = False
        rows = value.reshape(self.batch_size, -1).tolist()
        self._texts.put([{"text": self._take(i, row)} for i, row in enumerate(rows)])

    def end(self) -> None:
        """Hand out what was held back, and end the iteration."""
        rest = [self._decode(i)[self._sent[i] :] for i in range(self.batch_size)]
        if any(rest):
            self._texts.put([{"text": text} for text in rest])
        self._tokens = [[] for _ in range(self.batch_size)]
        self._sent = [0] * self.batch_size
        self._next_is_prompt = True
        self._texts.put(None)

    def __iter__(self) -> TextIteratorStreamerBatch:
        return self

    def __next__(self) -> list[dict[str, str]]:
        texts = self._texts.get(timeout=self.timeout)
        if texts is None:
            raise StopIteration
        return texts

    def _take(self, index: int, token_ids: list[int]) -> str:
        self._tokens[index].extend(token_ids)
        line = self._decode(index)
        sent = self._sent[index]
        if line.endswith("\n"):
            # Begin anew: decoding the whole text for each token would take quadratic time.
            self._tokens[index] = []
            self._sent[index] = 0
            return line[sent:]
        final = len(line) if line and _is_cjk(line[-1]) else line.rfind(" ") + 1
        if final <= sent:
            return ""
        self._sent[index] = final
        return line[sent:final]

    def _decode(self, index: int) -> str:
        tokens = self._tokens[index]
        return self.tokenizer.decode(tokens, **self.decode_kwargs) if tokens else ""


# Scripts without blanks between words: each character is final when it is there.
_CJK_BLOCKS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


def _is_cjk(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in _CJK_BLOCKS)
