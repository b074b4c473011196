"""What training and evaluation both start from: a device, the data, a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sn_imagenet.config import ConfigError, ExperimentConfig
from sn_imagenet.data import DataSets, build
from sn_imagenet.models import build_model
from sn_imagenet.norms import norm_layers
from sn_imagenet.replicas import choose_device, set_precision


@dataclass(frozen=True)
class Prepared:
    """The network is on ``device`` with its initial weights, the same on every rank."""

    config: ExperimentConfig
    device: torch.device
    data: DataSets
    network: nn.Module


def prepare(config: ExperimentConfig) -> Prepared:
    """Check and build all that a run needs before any work is done. Not collective.

    Raises:
        UserError: of the device, the data, the model or the normaliser.
    """
    device = choose_device(config.trainer.device)
    set_precision(config.trainer.precision, device)
    data = build(config.data, config.augment, config.seed)
    network = build_model(
        config.model, config.norm, config.protocol, len(data.classes), config.seed
    )
    _check_test_statistics(network, config)
    if device.type == "cuda":
        network = network.to(device).to(memory_format=torch.channels_last)
    return Prepared(config, device, data, network)


def stores_statistics(network: nn.Module) -> bool:
    """Whether evaluation uses stored statistics of the training data."""
    return any(layer.track_running_stats for layer in norm_layers(network).values())


def _check_test_statistics(network: nn.Module, config: ExperimentConfig) -> None:
    """Whether the config's ``norm.test_statistics`` is an evaluation that this network has.

    Raises:
        ConfigError: it is not.
    """
    possible = ["moving_average", "batch_average"] if stores_statistics(network) else ["sample"]
    if config.norm.test_statistics not in possible:
        raise ConfigError(
            f"norm.test_statistics={config.norm.test_statistics}: norm={config.norm.name} has "
            f"{' and '.join(possible)} only"
        )
