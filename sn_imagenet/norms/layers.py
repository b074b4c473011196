"""Batch, instance, layer and group normalization: mixtures with a single member."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.norms.mixture import MixtureNorm2d
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.moments import Moments, Statistics


class BatchNorm2d(MixtureNorm2d):
    """Batch normalization (Ioffe and Szegedy 2015): over (N, H, W) of each replica's samples."""

    omega = ("bn",)


class InstanceNorm2d(MixtureNorm2d):
    """Instance normalization (Ulyanov et al. 2016): over (H, W) of each sample's channel.

    As in nn.InstanceNorm2d, ``track_running_stats`` is False unless it is given: then the averages
    of the samples' statistics are stored, and evaluation uses them. [C, H, W] is one sample.
    """

    omega = ("in",)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = False,
        **options: Any,
    ) -> None:
        self._tracks = track_running_stats
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)

    @property
    def stores_statistics(self) -> bool:
        return self._tracks

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
