"""Rivals of SN for few samples per GPU, and weight normalization: docs/rivals.md has the sources.

All but weight normalization are functions of the moments of each (sample, channel).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.moments import Moments, Statistics
from sn_imagenet.norms.switch_norm import SwitchNorm2d


class SparseSwitchNorm2d(SwitchNorm2d):
    """Sparse SN (Shao et al. 2019, arXiv 1903.03793): SN with :func:`sparsestmax` for the softmax.

    The buffer ``radius`` is the fraction of the training that is done. At sqrt(1 - 1/K) of it at
    the latest, each layer has chosen one of its K members for the mean and one for the variance.
    The choice is then fixed.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.radius: Tensor
        self.register_buffer("radius", torch.zeros((), **self._factory))

    @property
    def logits(self) -> tuple[Tensor, Tensor]:
        """Logits whose softmax is the sparsestmax of ``mean_weight`` and ``var_weight``."""
        both = torch.stack([self.mean_weight, self.var_weight])
        mean, var = _log(sparsestmax(both, self.radius)).unbind()
        return mean, var

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.radius.fill_(progress)
        for weight in (self.mean_weight, self.var_weight):
            chosen = (sparsestmax(weight, self.radius) > 0).to(weight.dtype)
            # Gradients are 0 from a gap of 1 on. With 2, momentum alone cannot undo the choice.
            weight.copy_(torch.where(chosen.sum() == 1, 2 * chosen, weight))


def sparsestmax(logits: Tensor, radius: Tensor) -> Tensor:
    """Weights of K members from ``logits`` [..., K]: of its shape, at least 0, with sum 1.

    They are the sparsemax (Martins and Astudillo 2016) of the logits, but at least ``radius`` (0-d)
    away from equal weights. Sparsemax weights that are closer move away from the center to the
    sphere of this radius. If that makes one negative, it becomes 0, and the others move to the same
    sphere on the smaller simplex that is left. Equal logits have no direction and keep equal
    weights. The number of operations does not depend on the values, so that programs can be
    exported and recorded.
    """
    count = logits.shape[-1]
    weights = _sparsemax(logits)
    support = torch.ones_like(weights)
    for _ in range(count - 1):
        size = support.sum(-1, keepdim=True)
        center = support / size
        # Pythagoras: the center of the smaller simplex is away from that of the whole one.
        reach = (radius.square() - 1 / size + 1 / count).clamp_min(0).sqrt()
        offset = weights - center
        distance = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
        moves = (distance > 0) & (distance < reach)
        moved = center + offset * (reach / torch.where(moves, distance, 1))
        weights = torch.where(moves, _sparsemax(moved) * support, weights)  # rounding leaves none
        support = (weights > 0).to(weights.dtype)
    return weights


def _sparsemax(values: Tensor) -> Tensor:
    """The points of the simplex that are closest to ``values`` [..., K]."""
    ordered = values.sort(descending=True).values
    sizes = torch.arange(1, values.shape[-1] + 1, device=values.device)
    inside = ordered * sizes > ordered.cumsum(-1) - 1
    total = torch.where(inside, ordered, 0).sum(-1, keepdim=True)
    return (values - (total - 1) / inside.sum(-1, keepdim=True)).clamp_min(0)


def _log(weights: Tensor) -> Tensor:
    """The logarithm, -inf at 0 with gradient 0. The gradient of a softmax of it equals that of the
    weights up to a constant, to which sparsestmax's is blind."""
    positive = weights > 0
    return torch.where(positive, torch.where(positive, weights, 1).log(), -math.inf)


class BatchInstanceNorm2d(MomentNorm2d):
    """Batch-instance normalization (Nam and Kim 2018, arXiv 1805.07925).

    y = weight * (rho x_bn + (1 - rho) x_in) + bias with rho per channel, initially 1 and clamped to
    [0, 1] after each step. As one mean and standard deviation: 1/s = rho/s_bn + (1 - rho)/s_in and
    m = s (rho m_bn/s_bn + (1 - rho) m_in/s_in).
    """

    stores_statistics = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rho = nn.Parameter(torch.ones(self.num_features, **self._factory))

    def combine(self, moments: Moments) -> Statistics:
        mean_bn, var_bn = self.batch_statistics(moments)
        mean_in, var_in = moments.instance()
        rho = self.rho.to(mean_in.dtype)
        of_bn = rho * torch.rsqrt(var_bn + self.eps)
        of_in = (1 - rho) * torch.rsqrt(var_in + self.eps)
        total = of_bn + of_in
        return (of_bn * mean_bn + of_in * mean_in) / total, total.pow(-2) - self.eps

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.rho.clamp_(0, 1)


class FilterResponseNorm2d(MomentNorm2d):
    """Filter response normalization (Singh and Krishnan 2020, arXiv 1911.09737).

    y = weight * x / sqrt(mean of x^2 over (H, W) + eps) + bias. With ``relu = True`` the layer
    learns a threshold ``tau`` [C], initially 0, and returns max(y, tau) (the paper's TLU) instead
    of max(y, 0); a residual is added before. ``eps`` is constant: maps of 1 x 1 pixel, for which
    the paper learns it, lose their size.
    """

    replaces_relu = True

    def __init__(
        self, num_features: int, eps: float = 1e-6, *arguments: Any, **options: Any
    ) -> None:
        super().__init__(num_features, eps, *arguments, **options)
        self.tau: nn.Parameter | None
        self.register_parameter("tau", None)

    @property
    def relu(self) -> bool:
        return self.tau is not None

    @relu.setter
    def relu(self, value: bool) -> None:
        like = torch.empty(self.num_features, **self._factory)
        like = like if self.weight is None else self.weight.detach()
        self.tau = nn.Parameter(torch.zeros_like(like)) if value else None

    def combine(self, moments: Moments) -> Statistics:
        mean, var = moments.instance()
        return torch.zeros_like(mean), var + mean.square()

    def coefficients(self, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
        center, scale, shift = super().coefficients(moments)
        return center, scale, shift if self.tau is None else shift - self.tau.to(shift.dtype)

    def _normalize(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Any]:
        y, tables = super()._normalize(x, residual)  # ReLU(y - tau)
        return y if self.tau is None else y + self.tau.to(y.dtype)[:, None, None], tables


class ExtendedBatchNorm2d(MomentNorm2d):
    """Extended batch normalization (Luo et al. 2020, arXiv 2003.05569): means over (N, H, W) for
    each channel, one variance over (N, C, H, W)."""

    stores_statistics = True

    def combine(self, moments: Moments) -> Statistics:
        mean, var = self.batch_statistics(moments)
        between = torch.var(mean, dim=-1, correction=0, keepdim=True)
        return mean, var.mean(dim=-1, keepdim=True) + between


class MeanOnlyBatchNorm2d(MomentNorm2d):
    """Mean-only batch normalization (Salimans and Kingma 2016, Sec. 4): x - mean + bias, with the
    mean over (N, H, W). There is no ``weight``."""

    stores_statistics = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.weight = None
        self.eps = 0.0  # nothing is divided by

    def combine(self, moments: Moments) -> Statistics:
        mean, _ = self.batch_statistics(moments)
        return mean, torch.ones_like(mean)


class WeightNorm2d(MeanOnlyBatchNorm2d):
    """What follows a weight-normalized convolution (Salimans and Kingma 2016, arXiv 1602.07868):
    x + bias, or mean-only batch normalization.

    The convolutions are not part of the layer: sn_imagenet.models normalizes the weights of a
    network with such layers.

    Args:
        mean_only_bn: also subtract the batch's mean.
        folded: the convolutions of the network hold plain weights, as in an export.
    """

    normalizes_weights = True

    def __init__(
        self, *arguments: Any, mean_only_bn: bool = False, folded: bool = False, **options: Any
    ) -> None:
        self.mean_only_bn, self.folded = mean_only_bn, folded
        self.stores_statistics = mean_only_bn
        super().__init__(*arguments, **options)

    def combine(self, moments: Moments) -> Statistics:
        if self.mean_only_bn:
            return super().combine(moments)
        return torch.zeros_like(moments.mean), torch.ones_like(moments.var)

    @property
    def _stored_statistics_suffice(self) -> bool:
        return not self.mean_only_bn or self._uses_stored_statistics

    def _forward_without_moments(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if x.numel() == 0:
            return super()._forward_without_moments(x, residual)
        shift = torch.zeros((), dtype=x.dtype, device=x.device) if self.bias is None else self.bias
        if self.mean_only_bn:
            shift = shift - self._stored()[0]
        y = x + shift.to(x.dtype).view(-1, 1, 1)
        y = y if residual is None else y + residual
        return F.relu(y) if self.relu else y
