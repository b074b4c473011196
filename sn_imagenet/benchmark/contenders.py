"""The layers that are timed: PyTorch's, the paper's code, and ours."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sn_imagenet.benchmark.timing import Context
from sn_imagenet.norms.control import set_replicas
from sn_imagenet.norms.layers import BatchNorm2d, GroupNorm2d, InstanceNorm2d, LayerNorm2d
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.switch_norm import SwitchNorm2d

REFERENCE = "nn.BatchNorm2d"
SYNC = "nn.SyncBatchNorm's kernels"
RESIDUAL = ("PyTorch BN, add, ReLU", "SN, add, ReLU", "SN add ReLU fused")


@dataclass(frozen=True)
class Contender:
    """A layer, and the context in which it is called; entering that is not timed."""

    layer: nn.Module
    around: Context = nullcontext


class Fig7(nn.Module):
    """Fig. 7 of the paper as it is printed: nine passes over x forward, many more kept copies."""

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


class SyncKernels(nn.Module):
    """nn.SyncBatchNorm's five kernels on one process: its time without the communication.

    nn.SyncBatchNorm itself calls them only where there are several processes. They have no CPU
    implementation; see :func:`has_sync_kernels`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        running = self.running_mean, self.running_var
        y: Tensor = _SyncFunction.apply(x, self.weight, self.bias, *running, 1e-5, 0.1)
        return y


class _SyncFunction(torch.autograd.Function):
    """The calls of torch.nn.modules._functions.SyncBatchNorm, the collectives left out."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
    ) -> Tensor:
        mean, invstd = torch.batch_norm_stats(x, eps)
        counts = torch.full((1,), x.numel() // x.size(1), dtype=mean.dtype, device=x.device)
        mean, invstd = torch.batch_norm_gather_stats_with_counts(
            x, mean[None], invstd[None], running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(x, weight, mean, invstd, counts.to(torch.int32))
        y: Tensor = torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, counts = ctx.saved_tensors
        sum_dy, sum_dy_xmu, dweight, dbias = torch.batch_norm_backward_reduce(
            grad, x, mean, invstd, weight, *ctx.needs_input_grad[:3]
        )
        dx = torch.batch_norm_backward_elemt(
            grad, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts
        )
        return dx, dweight, dbias, None, None, None, None


class AddRelu(nn.Module):
    """The end of a residual block: relu(layer(x) + residual), a gradient for the residual included.

    ``fused``: by the layer itself, one of ours; otherwise in place, as timm's blocks do it.
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


def has_sync_kernels(device: torch.device) -> bool:
    """Whether the installed PyTorch has them for a device, asked of its dispatcher."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(
            "aten::batch_norm_stats", device.type.upper()
        )
    )


def batch_norm_backend(x: Tensor, layer: nn.BatchNorm2d) -> str:
    """Which of its implementations PyTorch chooses for ``layer`` on ``x``: native, cuDNN, MIOpen.

    It is PyTorch's own choice, of shapes, dtypes and torch.backends.cudnn.flags, and runs nothing:
    fake tensors of a device that is not there do as well.
    """
    chosen = torch._C._select_batch_norm_backend(
        x, layer.weight, layer.bias, layer.running_mean, layer.running_var, True, layer.eps
    )
    names = {"Native": "native", "Cudnn": "cuDNN", "Miopen": "MIOpen"}
    return names[str(chosen).rsplit(".", 1)[-1]]


def references(x: Tensor, channels: int) -> dict[str, Contender]:
    """nn.BatchNorm2d under each backend that it has for ``x``, named where there could be two."""
    if not x.is_cuda:
        return {REFERENCE: Contender(nn.BatchNorm2d(channels, device=x.device))}
    found: dict[str, Contender] = {}
    for enabled in (True, False):
        around = partial(torch.backends.cudnn.flags, enabled=enabled)
        layer = nn.BatchNorm2d(channels, device=x.device)
        with around():
            backend = batch_norm_backend(x, layer)
        found.setdefault(f"{REFERENCE} ({backend})", Contender(layer, around))
    return found


def contenders(x: Tensor, replicas: int = 1) -> dict[str, Contender]:
    """Layers by name for an activation [N, C, H, W]; ours under the backend that they choose.

    With ``replicas``, our BN and SN have as many sets of statistics; PyTorch's and the paper's
    code have one all the same.
    """
    channels = x.shape[1]
    group_norm = nn.GroupNorm(32, channels).to(x.dtype)  # takes no other dtype than its own on CUDA
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
    if has_sync_kernels(x.device):
        plain[SYNC] = SyncKernels(channels)
    found = references(x, channels)
    for name, layer in plain.items():
        set_replicas(layer, replicas)
        found[name] = Contender(layer.to(x.device))
    return found


def residual_contenders(x: Tensor, replicas: int = 1) -> dict[str, Contender]:
    """What the end of a residual block costs: PyTorch's BN, and SN with and without its fusion."""
    channels = x.shape[1]
    layers = (nn.BatchNorm2d(channels), SwitchNorm2d(channels), SwitchNorm2d(channels))
    found: dict[str, Contender] = {}
    for name, layer in zip(RESIDUAL, layers, strict=True):
        set_replicas(layer, replicas)
        block = AddRelu(layer, x.detach(), fused=name == RESIDUAL[-1])
        found[name] = Contender(block.to(x.device))
    return found


def compiled_contenders(x: Tensor, replicas: int = 1) -> dict[str, Contender]:
    """BN, SN's formula and Fig. 7 under torch.compile, which takes minutes over all shapes."""
    channels = x.shape[1]
    plain = {
        REFERENCE: nn.BatchNorm2d(channels),
        "SN": SwitchNorm2d(channels),
        "Fig. 7": Fig7(channels),
    }
    # Dynamo's cache is by code, not by layer, and small: every shape starts with an empty one.
    torch.compiler.reset()
    found: dict[str, Contender] = {}
    for name, layer in plain.items():
        set_replicas(layer, replicas)
        layer.to(x.device).compile(dynamic=False, fullgraph=True)
        found[f"compile({name})"] = Contender(layer)
    return found
