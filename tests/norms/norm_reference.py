"""The paper's formulas in float64, implemented independently of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType

import torch
from torch import Tensor

from sn_imagenet.norms import MomentNorm2d, SwitchNorm2d, set_replicas
from sn_imagenet.norms.kernels import cpp, statistics_dtype

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
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
}


def activation(*shape: int, seed: int = 2) -> Tensor:
    """In float64; each (sample, channel) has another mean and spread, so that the members of Omega
    differ."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    spread = torch.rand(*shape[:2], 1, 1, generator=generator, dtype=torch.float64)
    return ((x * (0.5 + spread)) + 3 * spread).requires_grad_()


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


def check_switch_norm(
    x: Tensor,
    tolerance: float,
    backend: str | None,
    *,
    omega: Sequence[str] = ("in", "ln", "bn"),
    replicas: int = 1,
    relu: bool = False,
    with_residual: bool = False,
    by_autograd: bool = False,
    layout: Callable[[Tensor], Tensor] = LAYOUTS["contiguous"],
) -> None:
    """Compare SwitchNorm2d of ``x`` to :func:`fig7` in float64, with the residual and the gradient
    in ``layout``; the output's dtype and memory format are x's.

    ``by_autograd``: as a custom method runs.
    """
    eps = 1e-2  # bounds 1 / std where all pixels of a set are equal
    layer = SwitchNorm2d(x.shape[1], eps, omega=omega, num_groups=4)
    randomize(layer)
    layer = layer.to(statistics_dtype(x.dtype))
    layer.backend, layer.relu = backend, relu
    set_replicas(layer, replicas)
    if by_autograd:
        layer._normalize = MethodType(MomentNorm2d._normalize, layer)
    direction, added = (torch.randn(x.shape).to(x.dtype) for _ in range(2))
    residual = [layout(added).requires_grad_()] if with_residual else []
    parameters = [layer.weight, layer.bias, layer.mean_weight, layer.var_weight]
    inputs = [x.requires_grad_(), *parameters, *residual]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    options = {"omega": omega, "eps": eps, "num_groups": layer.num_groups, "replicas": replicas}
    expected = fig7(*exact[:5], **options)
    if with_residual:
        expected = expected + exact[5]
    if relu:
        # No gradient where rounding may decide the sign.
        direction = direction.masked_fill(expected.abs() < 10 * tolerance, 0)
        expected = torch.relu(expected)
    direction = layout(direction)

    y = layer(x, *residual)
    assert y.dtype == x.dtype and y.shape == x.shape
    if x.numel() > 1 and min(x.stride()) > 0:
        if x.is_contiguous():
            assert y.is_contiguous()
        elif x.is_contiguous(memory_format=torch.channels_last):
            assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    grads = torch.autograd.grad(y, inputs, direction)
    expected_grads = torch.autograd.grad(expected, exact, direction.double())
    # A parameter's gradient is a sum over many elements, so its error scales with their norm.
    for grad, reference in zip(grads, expected_grads, strict=True):
        scale = tolerance * max(1.0, float(reference.abs().max()), x.numel() ** 0.5)
        torch.testing.assert_close(grad.double(), reference, rtol=tolerance, atol=scale)
