"""Which weights of ``init=`` a task loads into its network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from two_phase_task import TwoPhase

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import SavedWeights, build_model, load_weights

NO_DATA: Any = None


class OnABackbone(TwoPhase):
    """Starts from the weights of a classifier, without its last layer."""

    def load_initial(self, network: Any, data: Any, saved: SavedWeights) -> list[str]:
        weights = {key: value for key, value in saved.weights.items() if "fc." not in key}
        new = ["fc.weight", "fc.bias"]
        load_weights(network.body, replace(saved, weights=weights), new)
        return ["a new fc"]


@pytest.fixture
def config(composed: Callable[..., ExperimentConfig]) -> ExperimentConfig:
    return composed("data=digits", "model=resnet14_mini", "norm=bn")


def saved_of(network: nn.Module, config: ExperimentConfig) -> SavedWeights:
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    return SavedWeights(path=Path("run"), weights=weights, model=config.model, norm=config.norm)


def test_a_task_starts_from_its_own_weights(config: ExperimentConfig) -> None:
    saved = saved_of(TwoPhase(config).network(NO_DATA), config)
    saved.weights["scale"].fill_(2)
    network = TwoPhase(replace(config, seed=1)).network(NO_DATA)
    assert not torch.equal(
        network.state_dict()["body.conv1.weight"], saved.weights["body.conv1.weight"]
    )
    assert TwoPhase(config).load_initial(network, NO_DATA, saved) == []
    assert all(
        torch.equal(value, saved.weights[key]) for key, value in network.state_dict().items()
    )


def test_what_does_not_fit_is_listed(config: ExperimentConfig) -> None:
    saved = saved_of(TwoPhase(config).network(NO_DATA), config)
    saved.weights["scale"] = torch.ones(2)
    saved.weights["shift"] = saved.weights.pop("offset")
    expected = (
        "^init=run: its network, task=classification model.name=resnet14_mini with norm=bn, does "
        r"not match this one: offset missing there, \[1\] here; scale \[2\] there, \[1\] here; "
        r"shift \[1\] there, missing here$"
    )
    with pytest.raises(ConfigError, match=expected):
        TwoPhase(config).load_initial(TwoPhase(config).network(NO_DATA), NO_DATA, saved)


def test_a_task_may_start_from_a_classifiers_backbone(config: ExperimentConfig) -> None:
    classifier = build_model(config.model, config.norm, config.protocol, 10, seed=1)
    saved, task = saved_of(classifier, config), OnABackbone(config)
    network = task.network(NO_DATA)
    head = network.state_dict()["body.fc.weight"].clone()
    assert task.load_initial(network, SimpleNamespace(), saved) == ["a new fc"]
    state = network.state_dict()
    assert torch.equal(state["body.conv1.weight"], saved.weights["conv1.weight"])
    assert torch.equal(state["body.fc.weight"], head)
