"""Batch, instance, layer and group normalization, and weighted mixtures of them, such as SN.

A mixture normalizes with mean = sum_k w_k mean_k and var = sum_k w'_k var_k over the members k of
Omega (Eq. (3)). Omega, the channel groups of gn and the logits of the weights define it completely.
Some kernels have a closed form of ``combine`` and its gradient. For others autograd differentiates
``combine``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.norms.closed_form.triton_tables import (
    Layout,
    Parameters,
    Running,
    TritonTables,
    takes_tables,
)
from sn_imagenet.norms.kernels import CPP, TRITON, as_dense, kernels_for, with_layout_of
from sn_imagenet.norms.kernels.cpp import MEMBERS
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.moments import Moments, Statistics
from sn_imagenet.norms.op import normalize_with


class MixtureNorm2d(MomentNorm2d):
    """Base of BN, IN, LN, GN and SN; each subclass sets Omega.

    An overridden :meth:`combine` or :meth:`batch_statistics` is differentiated by autograd.

    Attributes:
        omega: Omega, a non-empty subset of (in, ln, bn, gn), in this order.
        num_groups: number of channel groups of gn; divides C.
        logits: logits of the weights for means and for variances (lambda and lambda' in the paper),
            each [len(omega)]; None for a single member.
    """

    omega: tuple[str, ...]
    num_groups = 1

    @property
    def stores_statistics(self) -> bool:
        return "bn" in self.omega

    @property
    def logits(self) -> tuple[Tensor, Tensor] | None:
        return None

    def combine(self, moments: Moments) -> Statistics:
        """Eq. (3): the members' statistics, weighted with the softmax of the logits (Eq. (4))."""
        statistics: dict[str, Statistics] = {}
        if "bn" in self.omega:
            statistics["bn"] = self.batch_statistics(moments)
        if "in" in self.omega:
            statistics["in"] = moments.instance()
        if "ln" in self.omega:
            statistics["ln"] = moments.layer()
        if "gn" in self.omega:
            statistics["gn"] = moments.group(self.num_groups)
        means, variances = zip(*(statistics[member] for member in self.omega), strict=True)
        logits = self.logits
        if logits is None:
            return means[0], variances[0]
        return _weighted_sum(logits[0], means), _weighted_sum(logits[1], variances)

    @property
    def _is_plain_mixture(self) -> bool:
        """Whether neither ``combine`` nor ``batch_statistics`` is overridden."""
        cls = type(self)
        return (
            cls.combine is MixtureNorm2d.combine
            and cls.batch_statistics is MomentNorm2d.batch_statistics
            and "combine" not in vars(self)
        )

    @property
    def _stored_statistics_suffice(self) -> bool:
        single = len(self.omega) == 1 and self.logits is None
        return single and self._uses_stored_statistics and self._is_plain_mixture

    def _normalize(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Statistics | None]:
        kernels = kernels_for(x, self.backend)
        if kernels is None or self.instance_correction or not self._is_plain_mixture:
            return super()._normalize(x, residual)
        parameters = Parameters(self.weight, self.bias, *(self.logits or (None, None)))
        running = self._stored() if self.track_running_stats else (None, None)
        stored = self._uses_stored_statistics
        replicas, group = self.groups
        if kernels is CPP and (group is None or stored or "bn" not in self.omega):
            x = as_dense(x)
            if residual is not None:
                residual = with_layout_of(residual, x)
            update = self._running_update(x.shape) if self.training else None
            momentum, unbias = (None, 0.0) if update is None else (float(update[0]), update[1])
            y, tables = torch.ops.sn_imagenet.mixture.default(
                *(x, residual, *parameters, *running),
                *([MEMBERS[member] for member in self.omega], self.num_groups, replicas),
                *(self.eps, self.relu, stored, momentum, unbias),
            )
            if self._stores_batch and update is None:
                mean, var = tables[-2 * replicas * self.num_features :].chunk(2)  # BN's
                return y, (mean.view(1, replicas, -1), var.view(1, replicas, -1))
            return y, None
        if kernels is TRITON and takes_tables(x, *parameters, *running):
            layout = _layout(tuple(self.omega), self.num_groups, x.shape, replicas, self.eps)
            follows = None
            if self.training and self._updates_running and self.momentum is not None:
                assert self.num_batches_tracked is not None
                follows = Running(*self._stored(), self.num_batches_tracked, self.momentum)
            combiner = TritonTables(
                layout, parameters, self._stored() if stored else None, group, follows
            )
            y = normalize_with(combiner, as_dense(x), residual, kernels, self.relu)
            return y, combiner.batch() if self._stores_batch and follows is None else None
        return super()._normalize(x, residual)


_layout = lru_cache(maxsize=4096)(Layout)


def _weighted_sum(logits: Tensor, tables: Sequence[Tensor]) -> Tensor:
    weights = torch.softmax(logits.to(tables[0].dtype), dim=0).unbind()
    total = weights[0] * tables[0]
    for weight, table in zip(weights[1:], tables[1:], strict=True):
        total = total + weight * table
    return total


class BatchNorm2d(MixtureNorm2d):
    """Batch normalization (Ioffe and Szegedy 2015): over (N, H, W) of each replica's samples."""

    omega = ("bn",)


class InstanceNorm2d(MixtureNorm2d):
    """Instance normalization (Ulyanov et al. 2016): over (H, W) of each sample's channel.

    As in nn.InstanceNorm2d, ``track_running_stats`` is False unless it is given: then the averages
    of the samples' statistics are stored, and evaluation uses them. [C, H, W] is one sample.
    """

    omega = ("in",)
    stores_statistics = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = False,
        **options: Any,
    ) -> None:
        self.stores_statistics = track_running_stats
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() != 3:
            return super().forward(x, residual)
        return super().forward(x[None], None if residual is None else residual[None])[0]

    def _normalize(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Statistics | None]:
        if self._stores_batch:
            return MomentNorm2d._normalize(self, x, residual)
        return super()._normalize(x, residual)

    def _statistics_to_store(self, moments: Moments) -> Statistics:
        return moments.mean.mean(0, keepdim=True), moments.var.mean(0, keepdim=True)

    def _running_update(self, shape: torch.Size) -> tuple[float | Tensor, float] | None:
        return super()._running_update(torch.Size((self.groups[0], *shape[1:])))  # one sample each

    def _next_momentum(self) -> float:
        return self.momentum or 0.0  # as nn.InstanceNorm2d, which does not count its batches


class LayerNorm2d(MixtureNorm2d):
    """Layer normalization (Ba et al. 2016): over (C, H, W) of each sample."""

    omega = ("ln",)


class GroupNorm2d(MixtureNorm2d):
    """Group normalization (Wu and He 2018): over (C / G, H, W) of each sample.

    Args:
        num_groups: G; if it does not divide C, the greatest common divisor of both is used.
    """

    omega = ("gn",)

    def __init__(self, *arguments: Any, num_groups: int = 32, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if num_groups < 1:
            raise ValueError(f"num_groups={num_groups}: expected at least 1")
        self.num_groups = math.gcd(num_groups, self.num_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}"
