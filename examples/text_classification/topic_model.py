"""The network of the text example; packed into the archive as its model file."""

import torch
from torch import nn

VOCABULARY_SIZE = 1000  # room for the words and word pairs of train.py
TOPICS = 4


class TopicModel(nn.Module):
    """The mean of the word vectors, then one linear layer.

    The default `text_classifier` handler calls `model(tokens, offsets)` and looks for the attribute
    `embedding` when it is asked for an explanation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(VOCABULARY_SIZE, 16, mode="mean")
        self.topic = nn.Linear(16, TOPICS)

    def forward(self, tokens: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """tokens: [tokens of all texts] int64; offsets: [texts] int64, where each begins."""
        return self.topic(self.embedding(tokens, offsets))
