"""Plain normalization layers of a single process, as the paper's GPUs ran them.

Nothing here comes from the package under test. Keys are those of the package's layers, so that one
state dict fits both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from plain_rivals import PlainRival
from torch import Tensor, nn


class PlainSwitchNorm2d(nn.Module):
    """Fig. 7 and Eq. (5) over this process's samples, differentiated by autograd.

    Running statistics are as in nn.BatchNorm2d: momentum 0.1, unbiased variance.
    """

    def __init__(self, channels: int, omega: Sequence[str]) -> None:
        super().__init__()
        self.omega = omega
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean_weight = nn.Parameter(torch.ones(len(omega)))
        self.var_weight = nn.Parameter(torch.ones(len(omega)))
        if "bn" in omega:
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))
            self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        mean_in = x.mean((2, 3), keepdim=True)
        var_in = ((x - mean_in) ** 2).mean((2, 3), keepdim=True)
        square_in = var_in + mean_in**2
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = square_in.mean(1, keepdim=True) - mean_ln**2
        mean_bn = mean_in.mean(0, keepdim=True)
        var_bn = square_in.mean(0, keepdim=True) - mean_bn**2
        if "bn" in self.omega:
            with torch.no_grad():
                unbiased = var_bn.flatten() * (n * h * w / (n * h * w - 1))
                self.running_mean.mul_(0.9).add_(0.1 * mean_bn.flatten())
                self.running_var.mul_(0.9).add_(0.1 * unbiased)
                self.num_batches_tracked.add_(1)
        means = {"in": mean_in, "ln": mean_ln, "bn": mean_bn}
        variances = {"in": var_in, "ln": var_ln, "bn": var_bn}
        weights, var_weights = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean = sum(weights[i] * means[name] for i, name in enumerate(self.omega))
        var = sum(var_weights[i] * variances[name] for i, name in enumerate(self.omega))
        y = (x - mean) / torch.sqrt(var + 1e-5)
        return y * self.weight[:, None, None] + self.bias[:, None, None]


def plain_layer(norm: str, channels: int, omega: Sequence[str]) -> nn.Module:
    """The unmodified per-process layer of ``norm``."""
    if norm == "bn":
        return nn.BatchNorm2d(channels)
    if norm == "gn":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    if norm == "sn":
        return PlainSwitchNorm2d(channels, omega)
    return PlainRival(norm, channels)
