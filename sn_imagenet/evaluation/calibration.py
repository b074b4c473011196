"""Batch average: BN statistics recomputed on training minibatches (Sec. 2.1; "PreciseBN")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sn_imagenet.config import CalibrationConfig
from sn_imagenet.data.datasets import AugmentedDataset
from sn_imagenet.data.loaders import calibration_loader, calibration_minibatches
from sn_imagenet.distributed import all_reduce_sum, rank, world_size
from sn_imagenet.evaluation.progress import progress_bar
from sn_imagenet.norms import (
    StoredStatistics,
    collect_batch_averages,
    norm_layers,
    set_replicas,
)
from sn_imagenet.norms.moments import BatchAverage

Samples = int | Literal["all"]


@torch.no_grad()
def calibrate(
    network: nn.Module,
    forward: Callable[[nn.Module, Any], None],
    train: AugmentedDataset,
    config: CalibrationConfig,
    *,
    samples_per_replica: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    autocast: Any,
    samples: Sequence[Samples] | None = None,
    make_loader: Callable[..., Any] = calibration_loader,
) -> list[tuple[StoredStatistics, dict[str, Any]]]:
    """Compute the batch average of each layer's BN statistics, for several sample counts at once.

    Only normalization layers are in training mode; dropout is off, and parameters and running
    statistics do not change. The set of forward passes is the same for any number of ranks: each
    pass runs on one rank, and the sums are added over the ranks.

    Args:
        forward: passes a batch through the network.
        samples_per_replica: the size of a minibatch, see
            :func:`~sn_imagenet.distributed.samples_that_share_statistics`.
        batch_size: the most samples in one forward pass (but at least one minibatch).
        samples: the sample counts, or ``all``; None for ``config.samples`` alone.
        make_loader: makes the loader of the minibatches.

    Returns:
        For each sample count in increasing order: layer name -> (mean [C], var [C]) in float64, and
        how they were computed, for the record of an evaluation. The seed fixes the order of the
        samples, so a larger count includes the samples of a smaller one.

    Raises:
        DataError: the requested samples do not fill one minibatch.
    """
    minibatches = {
        count: calibration_minibatches(len(train), samples_per_replica, count)
        for count in samples or [config.samples]
    }
    results: list[tuple[StoredStatistics, dict[str, Any]]] = []
    first = 0
    network.eval()
    layers = norm_layers(network).values()
    with collect_batch_averages(network) as averages:
        for layer in layers:
            layer.training = True  # train() would also enable dropout inside the layer
        try:
            for count in sorted(minibatches, key=lambda count: minibatches[count]):
                loader = make_loader(
                    train,
                    minibatch=samples_per_replica,
                    samples=count,
                    seed=config.seed,
                    rank=rank(),
                    world_size=world_size(),
                    minibatches_per_batch=max(1, batch_size // samples_per_replica),
                    workers=workers,
                    device=device,
                    skip=first,
                )
                for batch in progress_bar(loader, "calibration"):
                    set_replicas(network, len(batch) // samples_per_replica)
                    with autocast():
                        forward(network, batch)
                first = loader.sampler.minibatches
                calibration = {
                    "estimator": config.estimator,
                    "samples_requested": count,
                    "samples_used": loader.sampler.samples_used,
                    "samples_per_replica": samples_per_replica,  # for sync_bn the global batch
                    "seed": config.seed,
                }
                statistics = {
                    name: _all_reduce(average, config.estimator, network.get_submodule(name))
                    for name, average in averages.items()
                }
                results.append((statistics, calibration))
        finally:
            network.eval()
            set_replicas(network)
    return results


def _all_reduce(average: BatchAverage, estimator: str, layer: Any) -> tuple[Tensor, Tensor]:
    """Statistics of all ranks' minibatches so far; does not change ``average``. A frozen layer has
    none and keeps its own. Collective."""
    total = copy(average)
    total.tables = all_reduce_sum(average.tables.clone())
    total.count = all_reduce_sum(average.count.clone())
    if not total.count:
        return layer.running_mean.double(), layer.running_var.double()
    return total.statistics(estimator)
