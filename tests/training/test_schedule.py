"""The steps at which the learning rate drops, and its values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.tasks import Clock
from sn_imagenet.tasks.classification import Classification

Compose = Callable[..., ExperimentConfig]


def rates_by_epoch(config: ExperimentConfig, steps_per_epoch: int) -> list[float]:
    epochs = config.trainer.epochs
    assert epochs is not None
    clock = Clock(steps_per_epoch, steps_per_epoch * epochs)
    (optimization,) = Classification(config).optimizations(nn.Linear(1, 1), clock).values()
    rates = [optimization.learning_rate(step) for step in range(clock.total_steps)]
    by_epoch = [set(rates[e * steps_per_epoch :][:steps_per_epoch]) for e in range(epochs)]
    assert all(len(distinct) == 1 for distinct in by_epoch), "constant within an epoch"
    return [distinct.pop() for distinct in by_epoch]


def drops(rates: list[float]) -> list[int]:
    return [epoch for epoch in range(1, len(rates)) if rates[epoch] != rates[epoch - 1]]


def test_the_rate_drops_at_30_60_and_90_of_100_epochs(composed: Compose) -> None:
    rates = rates_by_epoch(composed(), steps_per_epoch=7)
    assert drops(rates) == [30, 60, 90]
    selected = [rates[epoch] for epoch in (29, 30, 60, 90, 99)]
    assert selected == pytest.approx([0.1, 0.01, 0.001, 0.0001, 0.0001])


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, []), (3, [1, 2]), (8, [2, 5, 7]), (10, [3, 6, 9])]
)
def test_milestones_are_fractions_of_the_training(
    composed: Compose, epochs: int, expected: list[int]
) -> None:
    assert drops(rates_by_epoch(composed(f"trainer.epochs={epochs}"), 3)) == expected
