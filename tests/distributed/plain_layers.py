"""Plain normalization layers of a single process, as the paper's GPUs ran them: SN by Fig. 7 and
Eq. (5), and its rivals, differentiated by autograd.

Nothing here comes from the package under test. Keys are those of the package's layers, so that one
state dict fits both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


def plain_layer(norm: str, channels: int, omega: Sequence[str]) -> nn.Module:
    """The unmodified per-process layer of ``norm``."""
    if norm == "bn":
        return nn.BatchNorm2d(channels)
    if norm == "gn":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    return PlainLayer(norm, channels, omega or ("in", "ln", "bn"))


class PlainLayer(nn.Module):
    """The formula of ``norm`` over this process's samples, with the package's keys. ``omega``: the
    members of SN and sparse SN.

    Running statistics are as in nn.BatchNorm2d: momentum 0.1, unbiased variance.
    """

    def __init__(self, norm: str, channels: int, omega: Sequence[str]) -> None:
        super().__init__()
        self.norm, self.omega = norm, omega
        self.tracks = norm not in ("frn", "wn", "sn") or (norm == "sn" and "bn" in omega)
        if norm not in ("mean_bn", "wn"):
            self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        if norm in ("sn", "ssn"):
            self.mean_weight = nn.Parameter(torch.ones(len(omega)))
            self.var_weight = nn.Parameter(torch.ones(len(omega)))
        if norm == "ssn":
            self.register_buffer("radius", torch.tensor(0.0))
        if norm == "bin":
            self.rho = nn.Parameter(torch.ones(channels))
        if self.tracks:
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))
            self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias[:, None, None]
        if self.norm == "wn":
            return x + bias
        var_bn, mean_bn = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        var_in, mean_in = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        if self.norm == "frn":
            nu = (x**2).mean((2, 3), keepdim=True)
            return x / torch.sqrt(nu + 1e-6) * self.weight[:, None, None] + bias
        if self.tracks:
            self._track(x)
        if self.norm == "mean_bn":
            return x - mean_bn + bias
        if self.norm == "bin":
            rho = self.rho[:, None, None]
            y = rho * (x - mean_bn) / torch.sqrt(var_bn + 1e-5)
            y = y + (1 - rho) * (x - mean_in) / torch.sqrt(var_in + 1e-5)
        elif self.norm == "ebn":
            y = (x - mean_bn) / torch.sqrt(x.var(correction=0) + 1e-5)
        else:
            var_ln, mean_ln = torch.var_mean(x, (1, 2, 3), correction=0, keepdim=True)
            means = {"in": mean_in, "ln": mean_ln, "bn": mean_bn}
            variances = {"in": var_in, "ln": var_ln, "bn": var_bn}
            of_mean, of_var = self.shares(self.mean_weight), self.shares(self.var_weight)
            mean = sum(share * means[name] for share, name in zip(of_mean, self.omega, strict=True))
            var = sum(share * variances[k] for share, k in zip(of_var, self.omega, strict=True))
            y = (x - mean) / torch.sqrt(var + 1e-5)
        return y * self.weight[:, None, None] + bias

    def shares(self, logits: Tensor) -> Tensor:
        """Softmax; for sparse SN sparsestmax while all three weights are above 0."""
        if self.norm == "sn":
            return logits.softmax(0)
        weights = logits - (logits.sum() - 1) / 3
        offset = weights - 1 / 3
        if offset.norm() < self.radius:
            weights = 1 / 3 + offset * self.radius / offset.norm()
        assert weights.min() > 0
        return weights

    @torch.no_grad()
    def _track(self, x: Tensor) -> None:
        var, mean = torch.var_mean(x, (0, 2, 3))
        self.running_mean.lerp_(mean, 0.1)
        self.running_var.lerp_(var, 0.1)
        self.num_batches_tracked.add_(1)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Called by the loop after each step."""
        if self.norm == "ssn":
            self.radius.fill_(progress)
        if self.norm == "bin":
            self.rho.clamp_(0, 1)


class Threshold(nn.Module):
    """max(x, tau), with the tau of the layer before it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        layer.tau = nn.Parameter(torch.zeros(layer.bias.shape))
        self.layer = [layer]  # a list: it has its own name in the network

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.layer[0].tau[:, None, None])


def complete(network: nn.Module, norm: str) -> nn.Module:
    """``network`` with what ``norm`` needs besides its layers."""
    if norm == "frn":
        network.act1 = Threshold(network.bn1)
        for block in (m for m in network.modules() if isinstance(m, Bottleneck)):
            for number in (1, 2, 3):
                setattr(block, f"act{number}", Threshold(getattr(block, f"bn{number}")))
    if norm == "wn":
        for module in list(network.modules()):
            if isinstance(module, nn.Conv2d):
                weight_norm(module)
    return network
