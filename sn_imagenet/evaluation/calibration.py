"""Batch average: BN statistics recomputed on training minibatches (Sec. 2.1; "PreciseBN")."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Literal

import torch
from torch import Tensor

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.loaders import calibration_minibatches
from sn_imagenet.distributed import (
    all_reduce_sum,
    autocast_for,
    rank,
    samples_that_share_statistics,
    world_size,
)
from sn_imagenet.evaluation.progress import progress_bar
from sn_imagenet.norms import StoredStatistics, collect_batch_averages, norm_layers, set_replicas
from sn_imagenet.norms.moments import BatchAverage
from sn_imagenet.tasks import Prepared

Samples = int | Literal["all"]


def eval_batch_size(config: ExperimentConfig, device: torch.device) -> int:
    """``trainer.eval_batch_size``, or if null a size for the device: 256 images on CUDA; on a CPU
    at most 256 images and 2^21 pixels (41 images at 224 x 224), since larger batches take more
    memory there and are not faster.
    """
    if config.trainer.eval_batch_size is not None:
        return config.trainer.eval_batch_size
    if device.type == "cuda":
        return 256
    return max(1, min(256, 2**21 // config.data.image_size**2))


@torch.no_grad()
def calibrate(
    prepared: Prepared, samples: Sequence[Samples] | None = None, seed: int | None = None
) -> list[tuple[StoredStatistics, dict[str, Any]]]:
    """Compute the batch average of each layer's BN statistics, for several sample counts at once.

    Only normalization layers are in training mode; dropout is off, and parameters and running
    statistics do not change. A minibatch has the samples that share statistics in training. The set
    of forward passes is the same for any number of ranks: each pass runs on one rank, and the sums
    are added over the ranks.

    Args:
        samples: the sample counts, or ``all``; None for the config's alone.
        seed: of the order of the samples; None for the config's. A larger count includes the
            samples of a smaller one.

    Returns:
        For each sample count in increasing order: layer name -> (mean [C], var [C]) in float64, and
        how they were computed, for the record of an evaluation.

    Raises:
        DataError: the requested samples do not fill one minibatch.
    """
    config, network, train = prepared.config, prepared.network, prepared.data.train
    estimator, device = config.calibration.estimator, prepared.device
    seed = config.calibration.seed if seed is None else seed
    size = samples_that_share_statistics(network, config.batch)
    autocast = autocast_for(config.trainer.precision, device)
    minibatches = {
        count: calibration_minibatches(len(train), size, count)
        for count in samples or [config.calibration.samples]
    }
    results: list[tuple[StoredStatistics, dict[str, Any]]] = []
    first = 0
    network.eval()
    with collect_batch_averages(network) as averages:
        for layer in norm_layers(network).values():
            layer.training = True  # train() would also enable dropout inside the layer
        try:
            for count in sorted(minibatches, key=lambda count: minibatches[count]):
                loader = prepared.task.calibration_loader(
                    train,
                    minibatch=size,
                    samples=count,
                    seed=seed,
                    rank=rank(),
                    world_size=world_size(),
                    minibatches_per_batch=max(1, eval_batch_size(config, device) // size),
                    workers=config.data.workers,
                    device=device,
                    skip=first,
                )
                for batch in progress_bar(loader, "calibration"):
                    set_replicas(network, len(batch) // size)
                    with autocast():
                        prepared.task.forward(network, batch)
                first = loader.sampler.minibatches
                calibration = {
                    "estimator": estimator,
                    "samples_requested": count,
                    "samples_used": loader.sampler.samples_used,
                    "samples_per_replica": size,  # for sync_bn the global batch
                    "seed": seed,
                }
                statistics = {
                    name: _all_reduce(average, estimator, network.get_submodule(name))
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
