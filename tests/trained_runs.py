"""Write run directories as they are after the last step, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.models import build_model
from sn_imagenet.runs import RunDirectory, checkpoint
from sn_imagenet.runs.start import claimed

CLASSES = tuple(f"class {number}" for number in range(5))


class Trained(NamedTuple):
    """A run directory that holds ``network``, in evaluation mode."""

    path: Path
    network: nn.Module


def save_run(
    config: ExperimentConfig, network: nn.Module, classes: Sequence[str], **more: object
) -> Path:
    """Write the run directory of ``config`` with the weights of ``network``."""
    directory = RunDirectory(Path(config.run_dir))
    state = {"model": network.state_dict(), "classes": list(classes), "config": config.to_dict()}
    with claimed(directory, config):
        checkpoint.save(directory.final, state | more)
    return directory.path


def write_trained(config: ExperimentConfig) -> Trained:
    """Save weights and statistics that differ from the initial ones by random offsets."""
    network = build_model(config.model, config.norm, config.protocol, len(CLASSES), config.seed)
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.add_(0.2 * torch.rand(value.shape, generator=generator) - 0.1)
    return Trained(save_run(config, network, CLASSES), network.eval())
