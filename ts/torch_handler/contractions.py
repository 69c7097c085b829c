"""English contractions and what they stand for, in lower case.

Built from the regular endings and the irregular words, because nearly all of the language's
contractions are one of a few words plus a standard ending.
"""

from __future__ import annotations

_NEGATED = [
    "are",
    "could",
    "did",
    "does",
    "do",
    "had",
    "has",
    "have",
    "is",
    "might",
    "must",
    "need",
    "ought",
    "should",
    "was",
    "were",
    "would",
    "dare",
    "may",
]
_PRONOUNS = [
    "i",
    "you",
    "he",
    "she",
    "it",
    "we",
    "they",
    "that",
    "there",
    "this",
    "who",
    "what",
    "how",
    "where",
    "when",
    "why",
]
_SINGULAR = [
    "he",
    "she",
    "it",
    "that",
    "there",
    "this",
    "who",
    "what",
    "how",
    "where",
    "when",
    "why",
    "here",
]
_PLURAL = ["you", "we", "they", "who", "what", "there"]
_MODALS = ["could", "might", "must", "should", "would"]

CONTRACTION_MAP: dict[str, str] = {
    # Irregular: the first word changes, or more than one is contracted.
    "ain't": "is not",
    "can't": "cannot",
    "can't've": "cannot have",
    "shan't": "shall not",
    "won't": "will not",
    "won't've": "will not have",
    "i'm": "i am",
    "let's": "let us",
    "ma'am": "madam",
    "o'clock": "of the clock",
    "'cause": "because",
    "'tis": "it is",
    "'twas": "it was",
    "y'all": "you all",
    "y'all'd": "you all would",
    "y'all're": "you all are",
    "y'all've": "you all have",
    "so's": "so is",
    "not've": "not have",
    "will've": "will have",
    "to've": "to have",
}
CONTRACTION_MAP.update({f"{word}n't": f"{word} not" for word in _NEGATED})
CONTRACTION_MAP.update({f"{word}n't've": f"{word} not have" for word in _MODALS})
CONTRACTION_MAP.update({f"{word}'ve": f"{word} have" for word in [*_MODALS, *_PRONOUNS]})
CONTRACTION_MAP.update({f"{word}'ll": f"{word} will" for word in _PRONOUNS})
CONTRACTION_MAP.update({f"{word}'d": f"{word} would" for word in _PRONOUNS})
CONTRACTION_MAP.update({f"{word}'d've": f"{word} would have" for word in _PRONOUNS})
CONTRACTION_MAP.update({f"{word}'s": f"{word} is" for word in _SINGULAR})
CONTRACTION_MAP.update({f"{word}'re": f"{word} are" for word in _PLURAL})
CONTRACTION_MAP["how'd"] = "how did"
CONTRACTION_MAP["why'd"] = "why did"
CONTRACTION_MAP["where'd"] = "where did"
