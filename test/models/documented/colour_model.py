"""A model file for the default image_classifier: eight classes, of weights that a formula gives."""

import torch


class Colours(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = torch.nn.AdaptiveAvgPool2d(4)
        self.classes = torch.nn.Linear(48, 8)
        weights = torch.arange(8 * 48, dtype=torch.float32).reshape(8, 48)
        with torch.no_grad():
            self.classes.weight.copy_(torch.sin(weights * 0.7))
            self.classes.bias.copy_(torch.linspace(-0.2, 0.2, 8))

    def forward(self, images):
        return self.classes(torch.relu(self.pool(images)).flatten(1))
