"""The learning rate of each epoch (paper Sec. 4.1: 100 epochs, x 0.1 after 30, 60 and 90)."""

from __future__ import annotations

import math

from sn_imagenet.config import ExperimentConfig


def learning_rate(config: ExperimentConfig, epoch: int) -> float:
    """The rate of ``epoch`` (from 0): the initial rate times ``lr_factor`` for each milestone
    passed.
    """
    protocol, epochs = config.protocol, config.trainer.epochs
    passed = sum(epoch >= milestone_epoch(m, epochs) for m in protocol.lr_milestones)
    return config.initial_lr * protocol.lr_factor**passed


def milestone_epoch(fraction: float, epochs: int) -> int:
    """The epoch of a milestone, rounded: a fraction of 0.3 is 30 of 100 epochs, and 2 of 8."""
    return max(1, math.floor(fraction * epochs + 0.5))
