"""Batch average: BN's statistics for evaluation, from random training minibatches (Sec. 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sn_imagenet.config import CalibrationConfig, SettingConfig
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
from sn_imagenet.norms.batch_average import BatchAverage

Samples = int | Literal["all"]


@dataclass(frozen=True)
class Calibration:
    """How batch-average statistics were made, as recorded with the evaluation."""

    estimator: str
    samples_requested: int | str
    samples_used: int
    samples_per_replica: int  # those that share their statistics: of sync_bn the global batch
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def samples_that_share_statistics(network: nn.Module, batch: SettingConfig) -> int:
    """The samples of a minibatch of the batch average: what shared its statistics in training, a
    replica's samples or, for layers over all replicas, the global batch.
    """
    spanning = any(layer.needs_all_replicas for layer in norm_layers(network).values())
    return batch.total if spanning else batch.samples_per_gpu


@torch.no_grad()
def calibrate(
    network: nn.Module,
    train: AugmentedDataset,
    config: CalibrationConfig,
    *,
    samples_per_replica: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    autocast: Any,
    samples: Sequence[Samples] | None = None,
) -> list[tuple[StoredStatistics, Calibration]]:
    """The batch average of every layer's BN statistics, of several numbers of samples in one pass.

    The network is frozen: only its normalization layers are in training mode, dropout is off, and
    the running statistics stay as they are. The forward passes are the same on any number of ranks,
    each on one of them, and what they found is summed over the ranks.

    Args:
        samples_per_replica: in a minibatch, :func:`samples_that_share_statistics`.
        batch_size: samples in one forward pass at most (but at least one minibatch).
        samples: how many samples, or ``all``, each number's first; None: ``config.samples`` alone.

    Returns:
        For each of ``samples``, fewest first, layer name -> (mean [C], var [C]) in float64, and
        how they were made. The order of the samples is a function of the seed, so that those of a
        smaller number are among those of a larger one.

    Raises:
        DataError: the requested samples do not fill one minibatch.
    """
    minibatches = {
        asked: calibration_minibatches(len(train), samples_per_replica, asked)
        for asked in samples or [config.samples]
    }
    made: list[tuple[StoredStatistics, Calibration]] = []
    first = 0
    network.eval()
    layers = norm_layers(network).values()
    with collect_batch_averages(network) as averages:
        for layer in layers:
            layer.training = True  # train() would reach the dropout that a layer may hold
        try:
            for asked in sorted(minibatches, key=lambda asked: minibatches[asked]):
                loader = calibration_loader(
                    train,
                    minibatch=samples_per_replica,
                    samples=asked,
                    seed=config.seed,
                    rank=rank(),
                    world_size=world_size(),
                    minibatches_per_batch=max(1, batch_size // samples_per_replica),
                    workers=workers,
                    device=device,
                    first=first,
                )
                for images, _ in progress_bar(loader, "calibration"):
                    set_replicas(network, len(images) // samples_per_replica)
                    with autocast():
                        network(images)
                first = loader.minibatches
                used = Calibration(
                    estimator=config.estimator,
                    samples_requested=asked,
                    samples_used=loader.samples_used,
                    samples_per_replica=samples_per_replica,
                    seed=config.seed,
                )
                found = {n: _so_far(average, config.estimator) for n, average in averages.items()}
                made.append((found, used))
        finally:
            network.eval()
            set_replicas(network)
    return made


def _so_far(average: BatchAverage, estimator: str) -> tuple[Tensor, Tensor]:
    """Of all ranks' minibatches up to now; the sums of this rank go on. Collective."""
    total = copy(average)
    total.tables = all_reduce_sum(average.tables.clone())
    total.count = all_reduce_sum(average.count.clone())
    return total.statistics(estimator)
