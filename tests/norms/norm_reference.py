"""The paper's formulas in float64, implemented independently of the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sn_imagenet.norms.kernels import cpp

BACKENDS = ("native", "cpp") if cpp.supports(torch.zeros(1, 1, 1, 1)) else ("native",)
OMEGAS = (
    ("in",),
    ("ln",),
    ("bn",),
    ("gn",),
    ("in", "ln"),
    ("in", "bn"),
    ("ln", "bn"),
    ("bn", "gn"),
    ("in", "ln", "bn"),
    ("in", "ln", "gn"),
    ("in", "bn", "gn"),
    ("ln", "bn", "gn"),
    ("in", "ln", "bn", "gn"),
)


def member_moments(x: Tensor, member: str, num_groups: int = 32) -> tuple[Tensor, Tensor]:
    """Fig. 7, lines 6-8, and group norm: mean and biased variance, [N or 1, C or 1, 1, 1]."""
    if member == "gn":
        n, c, h, w = x.shape
        grouped = x.reshape(n, num_groups, c // num_groups, h, w)
        mean = grouped.mean(dim=(2, 3, 4), keepdim=True)
        var = ((grouped - mean) ** 2).mean(dim=(2, 3, 4), keepdim=True)
        per_channel = (n, num_groups, c // num_groups, 1, 1)
        return (
            mean.expand(per_channel).reshape(n, c, 1, 1),
            var.expand(per_channel).reshape(n, c, 1, 1),
        )
    dims = {"in": (2, 3), "ln": (1, 2, 3), "bn": (0, 2, 3)}[member]
    mean = x.mean(dim=dims, keepdim=True)
    return mean, ((x - mean) ** 2).mean(dim=dims, keepdim=True)


def fig7(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean_logits: Tensor,
    var_logits: Tensor,
    *,
    omega: Sequence[str] = ("in", "ln", "bn"),
    eps: float = 1e-5,
    num_groups: int = 32,
    replicas: int = 1,
) -> Tensor:
    """Fig. 7 with the softmax of Eq. (4), for each replica's samples x[r::replicas]."""
    mean_weight = mean_logits.exp() / mean_logits.exp().sum()
    var_weight = var_logits.exp() / var_logits.exp().sum()
    y = torch.empty_like(x)
    for r in range(replicas):
        samples = x[r::replicas]
        moments = [member_moments(samples, member, num_groups) for member in omega]
        mean = sum(w * m for w, (m, _) in zip(mean_weight, moments, strict=True))
        var = sum(w * v for w, (_, v) in zip(var_weight, moments, strict=True))
        normal = (samples - mean) / torch.sqrt(var + eps)
        y[r::replicas] = normal * gamma[:, None, None] + beta[:, None, None]
    return y


def randomize(layer: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter a random value, so that no symmetry hides an error."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            noise = torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64, device="cpu"
            )
            parameter.copy_(1 + 0.5 * noise)


def gradients(y: Tensor, inputs: Sequence[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    """Gradients of sum(y * d) for a fixed random d of y's shape."""
    generator = torch.Generator("cpu").manual_seed(seed)
    direction = torch.randn(y.shape, generator=generator, dtype=torch.float64, device="cpu")
    return torch.autograd.grad(y, inputs, direction.to(y))
