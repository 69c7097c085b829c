"""Tokens and n-grams of English text, without torchtext."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

# What becomes what, in this order. Quotes go, marks that end or group words stand alone, and the
# weaker separators become blanks.
_RULES = [
    (re.compile(r"<br />"), " "),
    (re.compile(r'"'), ""),
    (re.compile(r"([',.()!?])"), r" \1 "),
    (re.compile(r"[;:]"), " "),
]


def ngrams_iterator(token_list: Sequence[str], ngrams: int) -> Iterator[str]:
    """All tokens, then all pairs of neighbours joined by a blank, up to runs of `ngrams`."""
    for length in range(1, ngrams + 1):
        for start in range(len(token_list) - length + 1):
            yield " ".join(token_list[start : start + length])


def get_tokenizer(tokenizer: str | None, language: str = "en") -> Callable[[str], list[str]] | None:
    """A function from text to tokens.

    None splits at white space, "basic_english" lower-cases and separates punctuation; any other
    name gives None.
    """
    if tokenizer is None:
        return _split
    if tokenizer == "basic_english":
        return _basic_english
    return None


def _split(text: str) -> list[str]:
    return text.split()


def _basic_english(text: str) -> list[str]:
    text = text.lower()
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.split()
