"""Per-sample, per-channel moments, and the statistics that methods derive from them.

Every normalization method of the paper needs only the mean and the biased variance of each (sample,
channel) of an activation. All other statistics follow by the law of total variance, var = mean of
variances + variance of means. This is Eq. (5) without the cancellation of E[x^2] - E[x]^2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Statistics = tuple[Tensor, Tensor]
"""A mean and a biased variance, each broadcastable to [n, R, C]."""


def check_divides(samples: int, groups: int) -> None:
    """Raise ValueError if a batch cannot be divided evenly into its statistics groups."""
    if samples % groups:
        raise ValueError(
            f"a batch of {samples} samples cannot be divided evenly into {groups} statistics "
            "groups; see set_replicas"
        )


class Moments:
    """The tables of one batch, and the statistics of each method.

    A batch has R statistics groups (replicas). Sample j belongs to group j mod R, so the [N, C]
    tables are stored as [n, R, C], with n = N / R samples per group.

    Args:
        mean: [N, C] means over (H, W), the paper's mu_in.
        var: [N, C] biased variances over (H, W), the paper's sigma_in^2.
        groups: R, the number of statistics groups in the batch.
        process_group: the ranks that share one statistics group, if it spans several; each must
            hold equally many of its samples.
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
        self._batch: Statistics | None = None  # for output and running statistics

    def instance(self) -> Statistics:
        """Over each (sample, channel): [n, R, C] (Eq. (5), first line)."""
        return self.mean, self.var

    def layer(self) -> Statistics:
        """Over all channels of each sample: [n, R, 1] (Eq. (5), second line)."""
        between, mean = torch.var_mean(self.mean, dim=2, correction=0, keepdim=True)
        return mean, self.var.mean(dim=2, keepdim=True) + between

    def batch(self) -> Statistics:
        """Over the samples of each group, by channel: [1, R, C] (Eq. (5), third line)."""
        if self._batch is None:
            self._batch = _combine_samples(self.mean, self.var)
            if self.process_group is not None:
                self._batch = combine_ranks(self._batch, self.process_group)
        return self._batch

    @property
    def has_batch(self) -> bool:
        """Whether :meth:`batch` has been called."""
        return self._batch is not None

    def group(self, channel_groups: int) -> Statistics:
        """Over each of ``channel_groups`` equal groups of a sample's channels: [n, R, C]."""
        n, replicas, channels = self.mean.shape
        grouped = (n, replicas, channel_groups, channels // channel_groups)
        between, mean = torch.var_mean(self.mean.view(grouped), dim=3, correction=0, keepdim=True)
        var = self.var.view(grouped).mean(dim=3, keepdim=True) + between
        return (
            mean.expand(grouped).reshape(self.mean.shape),
            var.expand(grouped).reshape(self.mean.shape),
        )


def _combine_samples(mean: Tensor, var: Tensor) -> Statistics:
    """Mean and variance of the union of n sets of equal size: [n, R, C] -> [1, R, C]."""
    if mean.shape[0] == 1:
        return mean, var
    between, total = torch.var_mean(mean, dim=0, correction=0, keepdim=True)
    return total, var.mean(dim=0, keepdim=True) + between


def combine_ranks(local: Statistics, group: dist.ProcessGroup) -> Statistics:
    """Combine each rank's batch statistics [1, R, C] into those of all ranks' samples.

    Ranks exchange 2 R C numbers, and equally many per rank in backward.
    """
    mean, var = _GatherOverRanks.apply(torch.cat(local), group).unbind(1)
    return _combine_samples(mean, var)


class _GatherOverRanks(torch.autograd.Function):
    """All-gather [...] -> [ranks, ...]; backward sums the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        gathered = local.new_empty((dist.get_world_size(group), *local.shape))
        dist.all_gather(list(gathered.unbind()), local.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total[dist.get_rank(ctx.group)], None


class BatchAverage:
    """Sums over minibatches of one layer's BN statistics, in float64, for recalibrated statistics
    ("PreciseBN"; paper Sec. 2.1, "Inference").

    ``tables`` is [3, C]: the sums of mean, of var and of mean^2. ``count`` is the number of
    minibatches, as a 0-d float64 tensor, so that both can be all-reduced over ranks.
    """

    def __init__(self, num_features: int, device: torch.device) -> None:
        self.tables = torch.zeros(3, num_features, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, mean: Tensor, var: Tensor) -> None:
        """Add the statistics of R minibatches, each [R, C]; variances are biased."""
        mean, var = mean.double(), var.double()
        self.tables += torch.stack([mean.sum(0), var.sum(0), mean.square().sum(0)])
        self.count += mean.shape[0]

    def statistics(self, estimator: str) -> tuple[Tensor, Tensor]:
        """Mean and variance, each [C] float64.

        ``mean_of_variances`` averages the minibatches' variances, as the paper describes it.
        ``population`` is E[mean^2 + var] - E[mean]^2, the variance over all samples together.

        Raises:
            ValueError: no minibatch was added, or the estimator is unknown.
        """
        if not self.count:
            raise ValueError("no minibatch was collected: run training-mode forward passes first")
        mean, var, square = self.tables / self.count
        if estimator == "mean_of_variances":
            return mean, var
        if estimator == "population":
            return mean, var + (square - mean.square()).clamp_min(0)
        raise ValueError(f"estimator={estimator!r}: expected mean_of_variances or population")
