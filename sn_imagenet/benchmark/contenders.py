"""The timed layers: PyTorch's, the paper's code, and ours."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.benchmark.command import REFERENCE
from sn_imagenet.benchmark.timing import Context
from sn_imagenet.norms.control import set_replicas
from sn_imagenet.norms.layers import BatchNorm2d, GroupNorm2d, InstanceNorm2d, LayerNorm2d
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.switch_norm import SwitchNorm2d

RESIDUAL = ("PyTorch BN, add, ReLU", "SN, add, ReLU", "SN add ReLU fused")


@dataclass(frozen=True)
class Contender:
    """A layer and the context in which it is called; entering the context is not timed."""

    layer: nn.Module
    context: Context = nullcontext


class Fig7(nn.Module):
    """Fig. 7 of the paper as printed: nine passes over x in forward, and many kept copies."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        w, v = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean: Tensor = torch.zeros((), device=x.device)
        var: Tensor = torch.zeros((), device=x.device)
        for k, dims in enumerate(((2, 3), (1, 2, 3), (0, 2, 3))):
            member_var, member_mean = torch.var_mean(x, dims, correction=0, keepdim=True)
            mean, var = mean + w[k] * member_mean, var + v[k] * member_var
        return ((x - mean) / torch.sqrt(var + 1e-5) * self.gamma + self.beta).to(x.dtype)


class AddRelu(nn.Module):
    """The end of a residual block, relu(layer(x) + residual), with a gradient for the residual.

    ``fused``: within the layer, one of ours; otherwise in place, as in timm's blocks.
    """

    def __init__(self, layer: nn.Module, x: Tensor, fused: bool) -> None:
        super().__init__()
        self.layer = layer
        self.residual = nn.Parameter(torch.randn_like(x))
        self.fused = fused
        if isinstance(layer, MomentNorm2d):
            layer.relu = fused

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if self.fused:
            y = self.layer(x, self.residual)
            return y
        y = self.layer(x)
        y += self.residual
        return F.relu_(y)


def batch_norm_backend(x: Tensor, layer: nn.BatchNorm2d) -> str:
    """The implementation that PyTorch chooses for ``layer`` on ``x``: native, cuDNN or MIOpen.

    PyTorch chooses by shapes, dtypes and torch.backends.cudnn.flags. Nothing runs, so fake tensors
    of an absent device work too.
    """
    chosen = torch._C._select_batch_norm_backend(
        x, layer.weight, layer.bias, layer.running_mean, layer.running_var, True, layer.eps
    )
    names = {"Native": "native", "Cudnn": "cuDNN", "Miopen": "MIOpen"}
    return names[str(chosen).rsplit(".", 1)[-1]]


def references(x: Tensor, channels: int) -> dict[str, Contender]:
    """nn.BatchNorm2d under each of its backends for ``x``; on CUDA the name tells the backend."""
    if not x.is_cuda:
        return {REFERENCE: Contender(nn.BatchNorm2d(channels, device=x.device))}
    layers: dict[str, Contender] = {}
    for enabled in (True, False):
        context = partial(torch.backends.cudnn.flags, enabled=enabled)
        layer = nn.BatchNorm2d(channels, device=x.device)
        with context():
            backend = batch_norm_backend(x, layer)
        layers.setdefault(f"{REFERENCE} ({backend})", Contender(layer, context))
    return layers


def layer_contenders(x: Tensor, replicas: int = 1) -> dict[str, Contender]:
    """Layers by name for an activation [N, C, H, W]; ours use the backend that they choose.

    Our BN and SN have ``replicas`` sets of statistics; PyTorch's layers and the paper's have one.
    """
    channels = x.shape[1]
    group_norm = nn.GroupNorm(32, channels).to(x.dtype)  # on CUDA it requires its input's dtype
    native = SwitchNorm2d(channels)
    native.backend = "native"
    plain: dict[str, nn.Module] = {
        "nn.GroupNorm(32)": group_norm,
        "Fig. 7": Fig7(channels),
        "SN": SwitchNorm2d(channels),
        "SN (native)": native,
        "BN": BatchNorm2d(channels),
        "GN": GroupNorm2d(channels),
        "LN": LayerNorm2d(channels),
        "IN": InstanceNorm2d(channels),
    }
    contenders = references(x, channels)
    for name, layer in plain.items():
        set_replicas(layer, replicas)
        contenders[name] = Contender(layer.to(x.device))
    return contenders


def residual_contenders(x: Tensor, replicas: int = 1) -> dict[str, Contender]:
    """Ends of a residual block: with PyTorch's BN, with SN, and with SN fused."""
    channels = x.shape[1]
    layers = (nn.BatchNorm2d(channels), SwitchNorm2d(channels), SwitchNorm2d(channels))
    contenders: dict[str, Contender] = {}
    for name, layer in zip(RESIDUAL, layers, strict=True):
        set_replicas(layer, replicas)
        block = AddRelu(layer, x.detach(), fused=name == RESIDUAL[-1])
        contenders[name] = Contender(block.to(x.device))
    return contenders
