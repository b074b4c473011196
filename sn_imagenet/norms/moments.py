"""Per-sample, per-channel moments, and how each method pools them.

Every normalizer of the paper needs from an activation only the mean and the biased variance of
each (sample, channel). The others' statistics follow from these by the law of total variance,
var = mean of variances + variance of means, which is Eq. (5) without the cancellation of
E[x^2] - E[x]^2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

Statistics = tuple[Tensor, Tensor]
"""A mean and a biased variance, each broadcastable to [n, R, C]."""


def check_divides(samples: int, groups: int) -> None:
    """Raise ValueError where a batch cannot be dealt evenly to its statistics groups."""
    if samples % groups:
        raise ValueError(
            f"a batch of {samples} samples cannot be dealt evenly to {groups} statistics "
            "groups; see set_replicas"
        )


class Moments:
    """The tables of one batch, and the statistics that methods pool from them.

    A batch holds R statistics groups (replicas): sample j belongs to group j mod R, so the
    [N, C] tables are kept as [n, R, C] with n = N / R samples per group.

    Args:
        mean: [N, C] means over (H, W), the paper's mu_in.
        var: [N, C] biased variances over (H, W), the paper's sigma_in^2.
        groups: R, the number of statistics groups in the batch.
        process_group: where one group of statistics spans several ranks, the ranks that share
            it; each must hold as many samples of it.
    """

    def __init__(
        self,
        mean: Tensor,
        var: Tensor,
        groups: int = 1,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        samples, channels = mean.shape
        check_divides(samples, groups)
        self.mean = mean.view(samples // groups, groups, channels)
        self.var = var.view(samples // groups, groups, channels)
        self.process_group = process_group
        self._batch: Statistics | None = None  # pooled once for the output and the running ones

    @property
    def samples_per_group(self) -> int:
        """Samples that share one group's statistics, over all ranks that share them."""
        ranks = dist.get_world_size(self.process_group) if self.process_group else 1
        return self.mean.shape[0] * ranks

    def instance(self) -> Statistics:
        """Each (sample, channel) alone: [n, R, C] (Eq. (5), first line)."""
        return self.mean, self.var

    def layer(self) -> Statistics:
        """Each sample over all channels: [n, R, 1] (Eq. (5), second line)."""
        between, mean = torch.var_mean(self.mean, dim=2, correction=0, keepdim=True)
        return mean, self.var.mean(dim=2, keepdim=True) + between

    def batch(self) -> Statistics:
        """Each channel over the samples of its group: [1, R, C] (Eq. (5), third line)."""
        if self._batch is None:
            self._batch = _over_samples(self.mean, self.var)
            if self.process_group is not None:
                self._batch = join_ranks(self._batch, self.process_group)
        return self._batch

    def update_running(self, running: Statistics, momentum: float | Tensor, unbias: float) -> None:
        """See the function of that name."""
        update_running(running, self.batch(), momentum, unbias)

    def group(self, channel_groups: int) -> Statistics:
        """Each sample over ``channel_groups`` equal runs of channels: [n, R, C]."""
        n, replicas, channels = self.mean.shape
        grouped = (n, replicas, channel_groups, channels // channel_groups)
        between, mean = torch.var_mean(self.mean.view(grouped), dim=3, correction=0, keepdim=True)
        var = self.var.view(grouped).mean(dim=3, keepdim=True) + between
        return (
            mean.expand(grouped).reshape(self.mean.shape),
            var.expand(grouped).reshape(self.mean.shape),
        )


def _over_samples(mean: Tensor, var: Tensor) -> Statistics:
    """Mean and variance of sets of equal size together, from their own: [n, R, C] -> [1, R, C]."""
    if mean.shape[0] == 1:
        return mean, var
    between, total = torch.var_mean(mean, dim=0, correction=0, keepdim=True)
    return total, var.mean(dim=0, keepdim=True) + between


def join_ranks(own: Statistics, group: dist.ProcessGroup) -> Statistics:
    """Each rank's batch statistics, [1, R, C] -> those of all ranks' samples, by the same law.

    They exchange 2 R C numbers, and as many per rank in backward.
    """
    mean, var = _GatherOverRanks.apply(torch.cat(own), group).unbind(1)
    return _over_samples(mean, var)


class RunningUpdate(NamedTuple):
    """What :func:`update_running` does to a layer's running statistics."""

    running: Statistics
    momentum: float | Tensor
    unbias: float


@torch.no_grad()
def update_running(
    running: Statistics, batch: Statistics, momentum: float | Tensor, unbias: float
) -> None:
    """Move the running statistics [C], in place, towards the first replica's of a batch [1, R, C].

    The batch's variance counts times ``unbias``; ``momentum`` is a number or 0-d.
    """
    mean, var = running
    if isinstance(momentum, Tensor):
        momentum = momentum.to(mean.dtype)
    mean.lerp_(batch[0][0, 0].to(mean.dtype), momentum)
    var.lerp_((batch[1][0, 0] * unbias).to(var.dtype), momentum)


class _GatherOverRanks(torch.autograd.Function):
    """[...] of each rank -> [ranks, ...] on all; in backward every rank's gradient adds up."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        gathered = own.new_empty((dist.get_world_size(group), *own.shape))
        dist.all_gather(list(gathered.unbind()), own.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total[dist.get_rank(ctx.group)], None
