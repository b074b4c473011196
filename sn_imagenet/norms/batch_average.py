"""Batch average: recalibrated statistics ("PreciseBN"; paper Sec. 2.1, "Inference")."""

from __future__ import annotations

import torch
from torch import Tensor


class BatchAverage:
    """Sums over minibatches of one layer's BN statistics, in float64.

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
