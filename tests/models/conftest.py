"""Trained runs for the tests of what becomes of them, without a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.models import build_model
from sn_imagenet.runs import RunDirectory, checkpoint

CLASSES = tuple(f"class {number}" for number in range(5))


class Trained(NamedTuple):
    """A run directory that holds ``network``, in evaluation mode."""

    path: Path
    network: nn.Module


@pytest.fixture
def trained(tmp_path: Path, composed: Callable[..., ExperimentConfig]) -> Callable[..., Trained]:
    """``trained("norm=sn", ...)``: a run directory as it is after the last step."""

    def make(*overrides: str) -> Trained:
        run = tmp_path / "-".join(overrides).replace("/", "_")
        config = composed("data=digits", "model=resnet14_mini", f"run_dir='{run}'", *overrides)
        network = build_model(config.model, config.norm, config.protocol, len(CLASSES), config.seed)
        generator = torch.Generator().manual_seed(0)
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.2 * torch.rand(value.shape, generator=generator) - 0.1)
        directory = RunDirectory(run)
        directory.claim(config)
        directory.release()
        state = {"model": network.state_dict(), "classes": list(CLASSES)}
        checkpoint.save(directory.final, state)
        return Trained(run, network.eval())

    return make
