"""The network of the detection example; packed into the archive as its model file."""

import torch
from torch import nn

COLOURS = 3  # the channels: red, green, blue


class ColourDetector(nn.Module):
    """Finds what is clearly red, green or blue: one box for each of these colours.

    It has nothing to learn, so the archive needs no weights. What makes it a detector is the form
    of its answer, which is that of torchvision's detection models.
    """

    def forward(self, images: torch.Tensor | list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """images: [n, 3, h, w], or n of [3, h, w] of any size; float32 in 0..1.

        Per image: boxes [k, 4] float32 (x1, y1, x2, y2), labels [k] int64, scores [k] float32.
        """
        return [self.detect(image) for image in images]

    def detect(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        others = (image.sum(0, keepdim=True) - image) / (COLOURS - 1)
        strength = image - others  # how far each channel stands out of the other two
        boxes, labels, scores = [], [], []
        for colour in range(COLOURS):
            rows, columns = (strength[colour] > 0.3).nonzero(as_tuple=True)
            if len(rows):
                corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                boxes.append(torch.stack(corners).float())
                labels.append(colour)
                scores.append(strength[colour][rows, columns].mean())
        return {
            "boxes": torch.stack(boxes) if boxes else torch.zeros(0, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.stack(scores) if scores else torch.zeros(0),
        }
