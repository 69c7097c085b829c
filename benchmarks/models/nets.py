"""The networks, with random weights from a fixed seed: no downloads, the same in every server."""

import torch
from torch import nn
from torch.nn import functional


class SmallCnn(nn.Module):
    """Two convolutions, two linear layers, 1.2 million weights; 28x28 grey images, 10 classes."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.linear1 = nn.Linear(64 * 12 * 12, 128)
        self.linear2 = nn.Linear(128, 10)

    def forward(self, images):
        hidden = functional.relu(self.conv1(images))
        hidden = functional.relu(self.conv2(hidden))
        hidden = functional.max_pool2d(hidden, 2).flatten(1)
        return self.linear2(functional.relu(self.linear1(hidden)))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images):
        hidden = functional.relu(self.norm1(self.conv1(images)))
        hidden = self.norm2(self.conv2(hidden))
        return functional.relu(hidden + self.shortcut(images))


class ResNet18(nn.Module):
    """The layers of ResNet-18, 11.7 million weights; 224x224 colour images, 1000 classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks, inputs = [], 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(512, 1000)

    def forward(self, images):
        return self.linear(self.blocks(self.stem(images)).mean((2, 3)))


def build(name):
    """The network "cnn" or "resnet", ready for inference on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return {"cnn": SmallCnn, "resnet": ResNet18}[name]().eval()
