"""A model file: two numbers in, twice as much out, with weights of its own."""

import torch


class Double(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))
        self.mix = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.eye_(self.mix.weight)

    def forward(self, values):
        return self.mix(values) * self.factor
