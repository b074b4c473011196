"""Batch, instance, layer and group normalization: mixtures with a single member."""

from __future__ import annotations

import math
from typing import Any

from sn_imagenet.norms.mixture import MixtureNorm2d


class BatchNorm2d(MixtureNorm2d):
    """Batch normalization (Ioffe and Szegedy 2015): over (N, H, W) of each replica's samples."""

    omega = ("bn",)


class InstanceNorm2d(MixtureNorm2d):
    """Instance normalization (Ulyanov et al. 2016): over (H, W) of each sample's channel."""

    omega = ("in",)


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
