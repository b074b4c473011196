"""What a trainer or an evaluator tells all normalization layers of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sn_imagenet.norms.batch_average import BatchAverage
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.switch_norm import SwitchNorm2d

StoredStatistics = Mapping[str, tuple[Tensor, Tensor]]
"""Layer name -> (mean, var), each [C]."""


def norm_layers(network: nn.Module) -> dict[str, MomentNorm2d]:
    """The normalization layers of a network by name, in the order of its modules."""
    return {n: m for n, m in network.named_modules() if isinstance(m, MomentNorm2d)}


def set_replicas(
    network: nn.Module,
    replicas: int = 1,
    *,
    process_group: dist.ProcessGroup | None = None,
    holds_first_replica: bool = True,
) -> None:
    """Say how the samples of the coming batches share statistics.

    Args:
        replicas: R statistics groups in each batch; sample j belongs to group j mod R.
        process_group: the ranks over which one group spans, each with as many samples of it.
        holds_first_replica: whether the batch's first group is the experiment's replica 0, whose
            statistics the running ones follow, as rank 0's do under DistributedDataParallel.
    """
    told = (replicas, process_group, holds_first_replica)
    for layer in norm_layers(network).values():
        # Each step says so again, and a module's attributes are slow to set.
        if (layer.replicas, layer.process_group, layer.holds_first_replica) != told:
            layer.replicas, layer.process_group, layer.holds_first_replica = told


@contextmanager
def collect_batch_averages(network: nn.Module) -> Iterator[dict[str, BatchAverage]]:
    """Within it, training-mode forward passes add their batch statistics, of every replica, to the
    yielded accumulators and leave the running statistics alone. Empty for methods without BN's
    statistics.
    """
    layers = {n: m for n, m in norm_layers(network).items() if m.stores_statistics}
    averages: dict[str, BatchAverage] = {}
    for name, layer in layers.items():
        device = layer.weight.device if layer.weight is not None else torch.device("cpu")
        averages[name] = layer.batch_average = BatchAverage(layer.num_features, device)
    try:
        yield averages
    finally:
        for layer in layers.values():
            layer.batch_average = None


@contextmanager
def stored_statistics(network: nn.Module, statistics: StoredStatistics) -> Iterator[None]:
    """Within it, evaluation uses ``statistics`` in place of the running ones.

    Raises:
        KeyError: a layer that stores statistics has none in ``statistics``.
    """
    layers = {n: m for n, m in norm_layers(network).items() if m.track_running_stats}
    moving = {n: (m.running_mean, m.running_var) for n, m in layers.items()}
    try:
        for name, layer in layers.items():
            assert layer.running_mean is not None and layer.running_var is not None
            mean, var = statistics[name]
            layer.running_mean = mean.to(layer.running_mean)
            layer.running_var = var.to(layer.running_var)
        yield
    finally:
        for name, layer in layers.items():
            layer.running_mean, layer.running_var = moving[name]


def importance_weights(network: nn.Module) -> dict[str, dict[str, dict[str, float]]]:
    """Each SN layer's weights by name: {"mean": {member: w}, "variance": {member: w'}}."""
    return {
        name: layer.importance_weights()
        for name, layer in norm_layers(network).items()
        if isinstance(layer, SwitchNorm2d)
    }
