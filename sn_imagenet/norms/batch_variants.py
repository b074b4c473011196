"""Variants of batch normalization: renormalized, frozen, synchronized."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sn_imagenet.norms.mixture import BatchNorm2d
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.moments import Moments, Statistics


class BatchRenorm2d(MomentNorm2d):
    """Batch Renormalization (Ioffe 2017, Algorithm 1).

    y = weight * ((x - mean_B) / std_B * r + d) + bias, where r = std_B / std and
    d = (mean_B - mean) / std against the running statistics, clipped to [1 / r_max, r_max] and
    [-d_max, d_max] and held constant in backward. As one mean and variance to normalize with:
    mean_B - d std_B / r and var_B / r^2.

    Training starts as plain BN, and both limits grow linearly: r_max from 1 at ``warmup_steps``
    batches to its value at ``r_steps``, d_max from 0 at ``warmup_steps`` to its value at
    ``d_steps``. The defaults are Ioffe's steps (Sec. 4) and this paper's limits at (8,4)
    (Sec. 4.1). All replicas are corrected towards the running statistics of the first replica.

    Args:
        r_max: limit of r, at least 1.
        d_max: limit of d, at least 0.
        warmup_steps, r_steps, d_steps: numbers of training-mode batches.
    """

    stores_statistics = True
    trains_on_stored_statistics = True

    def __init__(
        self,
        *arguments: Any,
        r_max: float = 1.5,
        d_max: float = 0.5,
        warmup_steps: int = 5_000,
        r_steps: int = 40_000,
        d_steps: int = 25_000,
        **options: Any,
    ) -> None:
        if r_max < 1 or d_max < 0:
            raise ValueError(f"r_max={r_max}, d_max={d_max}: expected r_max >= 1 and d_max >= 0")
        if not 0 <= warmup_steps <= min(r_steps, d_steps):
            raise ValueError(
                f"warmup_steps={warmup_steps}, r_steps={r_steps}, d_steps={d_steps}: expected "
                "0 <= warmup_steps <= r_steps and d_steps"
            )
        super().__init__(*arguments, **options)
        if not self.track_running_stats:
            raise ValueError("track_running_stats=False: batch renorm needs running statistics")
        self.r_max, self.d_max = r_max, d_max
        self.warmup_steps, self.r_steps, self.d_steps = warmup_steps, r_steps, d_steps

    def limits(self) -> tuple[Tensor, Tensor]:
        """r_max and d_max at the current step, 0-d."""
        assert self.num_batches_tracked is not None
        step = self.num_batches_tracked.double()
        r_open = (step - self.warmup_steps) / max(self.r_steps - self.warmup_steps, 1)
        d_open = (step - self.warmup_steps) / max(self.d_steps - self.warmup_steps, 1)
        return 1 + (self.r_max - 1) * r_open.clamp(0, 1), self.d_max * d_open.clamp(0, 1)

    @property
    def _stored_statistics_suffice(self) -> bool:
        return not self.training and type(self).combine is BatchRenorm2d.combine

    def combine(self, moments: Moments) -> Statistics:
        if not self.training:
            return self.batch_statistics(moments)
        mean, var = moments.batch()
        variance = var + self.eps
        std = variance.sqrt()
        with torch.no_grad():
            stored_mean, stored_var = (table.to(mean.dtype) for table in self._stored())
            stored_std = (stored_var + self.eps).sqrt()
            r_max, d_max = (limit.to(mean.dtype) for limit in self.limits())
            r = (std / stored_std).clamp(1 / r_max, r_max)
            d = ((mean - stored_mean) / stored_std).clamp(-d_max, d_max)
        return mean - d / r * std, variance / r.square() - self.eps

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}"


class FrozenBatchNorm2d(MomentNorm2d):
    """Batch normalization with everything fixed, as in detectors that start from a classifier.

    Training uses stored statistics too, and ``weight`` and ``bias`` need no gradient unless
    ``requires_grad_`` says so. ``running_mean`` and ``running_var`` come from a checkpoint.
    """

    _version = 1  # without num_batches_tracked, which nn.BatchNorm2d then adds when it loads

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.running_mean = torch.zeros(self.num_features, **self._factory)
        self.running_var = torch.ones(self.num_features, **self._factory)
        self.requires_grad_(False)

    def combine(self, moments: Moments) -> Statistics:
        mean, var = self._stored()
        return mean.to(moments.mean.dtype), var.to(moments.mean.dtype)

    @property
    def _stored_statistics_suffice(self) -> bool:
        return type(self).combine is FrozenBatchNorm2d.combine

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        # nn.BatchNorm2d counts its batches; this layer does not.
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class SyncBatchNorm2d(BatchNorm2d):
    """Batch normalization over the samples of all replicas on all ranks.

    In training one statistics group spans the whole global batch, whatever :func:`set_replicas`
    says, so a rank needs all of its replicas in one pass. Ranks exchange 2 C numbers each way.
    For a batch average, each group of :func:`set_replicas` is a whole global batch on one rank.
    Nothing is exchanged then, and ranks may have different numbers of batches.
    """

    needs_all_replicas = True

    @property
    def groups(self) -> tuple[int, dist.ProcessGroup | None]:
        if self.replicas.average is not None:
            return self.replicas.count, None
        initialized = dist.is_available() and dist.is_initialized()
        shared = self.training and initialized and dist.get_world_size() > 1
        return 1, dist.group.WORLD if shared else None
