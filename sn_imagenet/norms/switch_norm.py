"""Switchable Normalization, Eqs. (1)-(5) of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sn_imagenet.norms.kernels.cpp import MEMBERS
from sn_imagenet.norms.mixture import MixtureNorm2d


class SwitchNorm2d(MixtureNorm2d):
    """Switchable Normalization: Eq. (3) with the importance weights of Eq. (4).

    mean = sum_k w_k mean_k and var = sum_k w'_k var_k over k in Omega, where w and w' are the
    softmax of ``mean_weight`` and ``var_weight`` (the paper's lambda and lambda'). Both have one
    entry per member of Omega, in the order in, ln, bn, gn, initially 1.

    In evaluation BN uses its stored statistics; IN, LN and GN use per-sample statistics.

    Args:
        omega: any non-empty subset of in, ln, bn, gn. The paper's is {in, ln, bn}, or {in, ln} with
            one sample per replica, since BN then equals IN (Table 2).
        num_groups: the groups of gn; if it does not divide C, the greatest common divisor is used.
        instance_correction: 1 divides each (sample, channel)'s variance by HW - 1, as the authors'
            code does, instead of HW (Eq. (5)). This changes the variances of all members, and the
            running variance is then not corrected again. Maps of one value raise a ValueError.
    """

    def __init__(
        self,
        *arguments: Any,
        omega: Sequence[str] = ("in", "ln", "bn"),
        num_groups: int = 32,
        instance_correction: int = 0,
        **options: Any,
    ) -> None:
        chosen = list(omega)
        if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(MEMBERS):
            raise ValueError(
                f"omega={chosen}: expected a non-empty set of {', '.join(MEMBERS)}, each once"
            )
        if instance_correction not in (0, 1):
            raise ValueError(f"instance_correction={instance_correction}: expected 0 or 1")
        self.omega = tuple(member for member in MEMBERS if member in chosen)
        super().__init__(*arguments, **options)
        size = len(self.omega)
        self.mean_weight = nn.Parameter(torch.ones(size, **self._factory))
        self.var_weight = nn.Parameter(torch.ones(size, **self._factory))
        self.num_groups = math.gcd(num_groups, self.num_features)
        self.instance_correction = instance_correction

    @property
    def logits(self) -> tuple[Tensor, Tensor]:
        return self.mean_weight, self.var_weight

    @torch.no_grad()
    def importance_weights(self) -> dict[str, dict[str, float]]:
        """Softmax of the logits: {"mean": {member: w}, "variance": {member: w'}} (Eq. (4))."""
        both = (torch.softmax(logits.double(), dim=0).tolist() for logits in self.logits)
        mean, var = (dict(zip(self.omega, weights, strict=True)) for weights in both)
        return {"mean": mean, "variance": var}

    def extra_repr(self) -> str:
        corrected = ", instance_correction=1" if self.instance_correction else ""
        return f"{super().extra_repr()}, omega={{{', '.join(self.omega)}}}{corrected}"


class SwitchNorm1d(SwitchNorm2d):
    """:class:`SwitchNorm2d` for [N, C] and [N, C, L], viewed as [N, C, 1, 1] and [N, C, 1, L].

    For [N, C], each (sample, channel) is one value: IN's variance is 0; only LN's and BN's vary.

    Raises:
        ValueError: the input is neither 2D nor 3D, or has a wrong number of channels.
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() not in (2, 3) or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} got an input of shape {list(x.shape)}: expected "
                f"[N, {self.num_features}] or [N, {self.num_features}, L]"
            )
        area = (1, x.shape[2]) if x.dim() == 3 else (1, 1)
        x_4d, residual_4d = _as_4d(x, residual, area)
        return super().forward(x_4d, residual_4d).view(x.shape)


class SwitchNorm3d(SwitchNorm2d):
    """:class:`SwitchNorm2d` for [N, C, D, H, W], viewed as [N, C, D, H * W].

    Raises:
        ValueError: the input is not 5D, or has a wrong number of channels.
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() != 5 or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} got an input of shape {list(x.shape)}: expected "
                f"[N, {self.num_features}, D, H, W]"
            )
        x_4d, residual_4d = _as_4d(x, residual, (x.shape[2], x.shape[3] * x.shape[4]))
        return super().forward(x_4d, residual_4d).view(x.shape)


def _as_4d(
    x: Tensor, residual: Tensor | None, area: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    if residual is None or residual.shape != x.shape:
        return x.reshape(*x.shape[:2], *area), residual
    return x.reshape(*x.shape[:2], *area), residual.reshape(*x.shape[:2], *area)
