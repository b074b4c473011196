"""A stepper of classification for tests that bring their own network and learning rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.distributed import Placement
from sn_imagenet.tasks import Clock
from sn_imagenet.tasks.classification import Classification
from sn_imagenet.tasks.classification.dropout import PlacedDropout
from sn_imagenet.training import Stepper

TOTAL_STEPS = 100  # of the training; sets the radius of sparse SN


def make_stepper(
    network: nn.Module,
    config: ExperimentConfig,
    placement: Placement,
    rate: Callable[[int], float] = lambda step: 0.1,
    device: str = "cpu",
) -> Stepper:
    """``rate``: learning rate by step."""
    task = Classification(config)
    if probability := config.protocol.dropout:
        task._dropout = PlacedDropout(network.get_classifier(), probability, config.seed)  # type: ignore[operator]
    clock = Clock(1, TOTAL_STEPS)
    stepper = Stepper(task, network, config, placement, torch.device(device), clock)
    stepper.optimizations = {
        name: replace(optimization, learning_rate=rate)
        for name, optimization in stepper.optimizations.items()
    }
    return stepper
