"""A transform in the manner of nflows and normflows, and two that are wrong."""

import torch
from torch import nn


class Scaled(nn.Module):
    """y = e^s x with one s for each number."""

    def __init__(self, features, *, width: float = 0.3) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(width * torch.randn(features))

    def forward(self, x):
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, y):
        return y * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(y))


class WrongSign(Scaled):
    """Returns the log-determinant of the other direction."""

    def forward(self, x):
        y, log_det = super().forward(x)
        return y, -log_det

    def inverse(self, y):
        x, log_det = super().inverse(y)
        return x, -log_det


class PerNumber(Scaled):
    """Returns a log-determinant for each number."""

    def forward(self, x):
        return x * self.log_scale.exp(), self.log_scale.expand(x.shape)
