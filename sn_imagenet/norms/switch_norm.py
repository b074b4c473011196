"""Switchable Normalization, Eqs. (1)-(5) of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sn_imagenet.norms.closed_form import MEMBERS
from sn_imagenet.norms.mixture import MixtureNorm2d


class SwitchNorm2d(MixtureNorm2d):
    """Switchable Normalization: Eq. (3) with the importance weights of Eq. (4).

    mean = sum_k w_k mean_k and var = sum_k w'_k var_k over k in Omega, where w and w' are the
    softmax of ``mean_weight`` and ``var_weight`` (the paper's lambda and lambda'), one entry per
    member of Omega in the order in, ln, bn, gn, initially 1.

    In evaluation BN's statistics are the stored ones, IN's, LN's and GN's the sample's own.

    Args:
        omega: any non-empty subset of in, ln, bn, gn; the paper's is {in, ln, bn}, and {in, ln}
            where a replica holds one sample, since BN then equals IN (Table 2).
        num_groups: the groups of gn; where it does not divide C, the greatest common divisor.
        instance_correction: 1 divides each (sample, channel)'s variance by HW - 1, as the authors'
            code does, in place of HW (Eq. (5)), and so changes all members' variances; the running
            variance then keeps the batch's as it is. Maps of one value are refused.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        omega: Sequence[str] = ("in", "ln", "bn"),
        num_groups: int = 32,
        instance_correction: int = 0,
    ) -> None:
        chosen = list(omega)
        if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(MEMBERS):
            raise ValueError(
                f"omega={chosen}: expected a non-empty set of {', '.join(MEMBERS)}, each once"
            )
        if instance_correction not in (0, 1):
            raise ValueError(f"instance_correction={instance_correction}: expected 0 or 1")
        self.members = tuple(member for member in MEMBERS if member in chosen)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        size = len(self.members)
        self.mean_weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))
        self.num_groups = math.gcd(num_groups, num_features)
        self.instance_correction = instance_correction

    @property
    def omega(self) -> tuple[str, ...]:
        """The paper's name of the members."""
        return self.members

    @property
    def logits(self) -> tuple[Tensor, Tensor]:
        return self.mean_weight, self.var_weight

    @torch.no_grad()
    def importance_weights(self) -> dict[str, dict[str, float]]:
        """The softmaxed weights: {"mean": {member: w}, "variance": {member: w'}} (Eq. (4))."""
        return {
            "mean": _by_member(self.omega, self.mean_weight),
            "variance": _by_member(self.omega, self.var_weight),
        }

    def extra_repr(self) -> str:
        corrected = ", instance_correction=1" if self.instance_correction else ""
        return f"{super().extra_repr()}, omega={{{', '.join(self.omega)}}}{corrected}"


class SwitchNorm1d(SwitchNorm2d):
    """:class:`SwitchNorm2d` for [N, C] and [N, C, L], seen as [N, C, 1, 1] and [N, C, 1, L].

    With [N, C] a (sample, channel) is one value: IN's variance is 0, and what varies is LN and BN.

    Raises:
        ValueError: the input is neither, or has another number of channels.
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() not in (2, 3) or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} got an input of shape {list(x.shape)}: expected "
                f"[N, {self.num_features}] or [N, {self.num_features}, L]"
            )
        area = (1, x.shape[2]) if x.dim() == 3 else (1, 1)
        seen, added = _seen_as_maps(x, residual, area)
        return super().forward(seen, added).view(x.shape)


class SwitchNorm3d(SwitchNorm2d):
    """:class:`SwitchNorm2d` for [N, C, D, H, W], seen as [N, C, D, H * W].

    Raises:
        ValueError: the input is not 5D, or has another number of channels.
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() != 5 or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} got an input of shape {list(x.shape)}: expected "
                f"[N, {self.num_features}, D, H, W]"
            )
        seen, added = _seen_as_maps(x, residual, (x.shape[2], x.shape[3] * x.shape[4]))
        return super().forward(seen, added).view(x.shape)


def _seen_as_maps(
    x: Tensor, residual: Tensor | None, area: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    if residual is None or residual.shape != x.shape:
        return x.reshape(*x.shape[:2], *area), residual
    return x.reshape(*x.shape[:2], *area), residual.reshape(*x.shape[:2], *area)


def _by_member(omega: Sequence[str], logits: Tensor) -> dict[str, float]:
    weights = torch.softmax(logits.double(), dim=0).tolist()
    return dict(zip(omega, weights, strict=True))
