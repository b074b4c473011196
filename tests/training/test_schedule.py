"""The epochs at which the learning rate drops, and its values."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.training.schedule import learning_rate, milestone_epoch

Compose = Callable[..., ExperimentConfig]


def test_the_rate_drops_at_30_60_and_90_of_100_epochs(composed: Compose) -> None:
    config = composed()
    drops = [e for e in range(1, 100) if learning_rate(config, e) != learning_rate(config, e - 1)]
    assert drops == [30, 60, 90]
    rates = [learning_rate(config, e) for e in (29, 30, 60, 90, 99)]
    assert rates == pytest.approx([0.1, 0.01, 0.001, 0.0001, 0.0001])


@pytest.mark.parametrize(
    ("epochs", "drops"), [(1, [1, 1, 1]), (3, [1, 2, 3]), (8, [2, 5, 7]), (10, [3, 6, 9])]
)
def test_milestones_are_fractions_of_the_training(epochs: int, drops: list[int]) -> None:
    assert [milestone_epoch(m, epochs) for m in (0.3, 0.6, 0.9)] == drops
