"""The network of the digits example; packed into the archive as its model file."""

import torch
from torch import nn


class Net(nn.Module):
    """Logits of the ten digits for 28x28 grayscale images.

    The server's loader wants exactly one class in a model file and builds it without arguments.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 32),
            nn.ReLU(),
            nn.Dropout(0.25),
            nn.Linear(32, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: [n, 1, 28, 28] float32, normalised as in `mnist_handler.py`; gives [n, 10]."""
        return self.classifier(self.features(images))
