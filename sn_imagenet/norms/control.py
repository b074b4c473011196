"""Functions with which a trainer or an evaluator controls a network's normalization layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sn_imagenet.norms.mixture import BatchNorm2d
from sn_imagenet.norms.moment_norm import MomentNorm2d, Replicas
from sn_imagenet.norms.moments import BatchAverage, Moments, Statistics
from sn_imagenet.norms.switch_norm import SwitchNorm2d

StoredStatistics = Mapping[str, tuple[Tensor, Tensor]]
"""Layer name -> (mean, var), each [C]."""


def norm_layers(network: nn.Module) -> dict[str, MomentNorm2d]:
    """The normalization layers of a network by name, in module order."""
    return {n: m for n, m in network.named_modules() if isinstance(m, MomentNorm2d)}


def stores_statistics(network: nn.Module) -> bool:
    """Whether evaluation uses stored statistics of the training data."""
    return any(layer.track_running_stats for layer in norm_layers(network).values())


def set_replicas(
    network: nn.Module,
    replicas: int = 1,
    *,
    process_group: dist.ProcessGroup | None = None,
    holds_first_replica: bool = True,
) -> None:
    """Set how the samples of the next batches share statistics.

    Args:
        replicas: R, the number of statistics groups in each batch; sample j is in group j mod R.
        process_group: the ranks that one group spans; each holds equally many of its samples.
        holds_first_replica: whether the batch's first group is the experiment's replica 0. Running
            statistics follow it, as they follow rank 0 under DistributedDataParallel.
    """
    for layer in norm_layers(network).values():
        average = layer.replicas.average
        shared = Replicas(replicas, process_group, holds_first_replica, average)
        if layer.replicas != shared:  # every step calls this, and setting attributes is slow
            layer.replicas = shared


@contextmanager
def collect_batch_averages(network: nn.Module) -> Iterator[dict[str, BatchAverage]]:
    """Context in which training-mode forward passes add every replica's batch statistics to the
    yielded accumulators, by layer name, and do not update running statistics. Methods without BN's
    statistics have no accumulator.
    """
    layers = {n: m for n, m in norm_layers(network).items() if m.stores_statistics}
    averages: dict[str, BatchAverage] = {}
    for name, layer in layers.items():
        device = layer.weight.device if layer.weight is not None else torch.device("cpu")
        averages[name] = BatchAverage(layer.num_features, device)
        layer.replicas = replace(layer.replicas, average=averages[name])
    try:
        yield averages
    finally:
        for layer in layers.values():
            layer.replicas = replace(layer.replicas, average=None)


@contextmanager
def stored_statistics(network: nn.Module, statistics: StoredStatistics) -> Iterator[None]:
    """Context in which evaluation uses ``statistics`` instead of the running statistics.

    Raises:
        KeyError: ``statistics`` lacks a layer that stores statistics.
    """
    layers = {n: m for n, m in norm_layers(network).items() if m.track_running_stats}
    running = {n: (m.running_mean, m.running_var) for n, m in layers.items()}
    try:
        for name, layer in layers.items():
            assert layer.running_mean is not None and layer.running_var is not None
            mean, var = statistics[name]
            layer.running_mean = mean.to(layer.running_mean)
            layer.running_var = var.to(layer.running_var)
        yield
    finally:
        for name, layer in layers.items():
            layer.running_mean, layer.running_var = running[name]


@contextmanager
def evalnorm(network: nn.Module, weight: float) -> Iterator[None]:
    """Context in which batch norm is evaluated with ``weight`` times each sample's own statistics
    plus (1 - ``weight``) times the stored ones (EvalNorm; Singh and Shrivastava 2019).

    Raises:
        ValueError: ``network`` has no batch norm with stored statistics.
    """
    every = norm_layers(network).values()
    layers = [m for m in every if isinstance(m, BatchNorm2d) and m.track_running_stats]
    if not layers:
        raise ValueError("EvalNorm evaluates batch norm: expected a network that has it")
    for layer in layers:
        vars(layer)["combine"] = partial(_evalnorm_statistics, layer, weight)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["combine"]


def _evalnorm_statistics(layer: BatchNorm2d, weight: float, moments: Moments) -> Statistics:
    pairs = zip(layer.batch_statistics(moments), moments.instance(), strict=True)
    mean, var = (stored + weight * (own - stored) for stored, own in pairs)
    return mean, var


def importance_weights(network: nn.Module) -> dict[str, dict[str, dict[str, float]]]:
    """Weights of the SN layers by name: {"mean": {member: w}, "variance": {member: w'}} each."""
    return {
        name: layer.importance_weights()
        for name, layer in norm_layers(network).items()
        if isinstance(layer, SwitchNorm2d)
    }
