"""prepare checks what a run needs before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from sn_imagenet.config import ExperimentConfig, from_hydra
from sn_imagenet.errors import ConfigError
from sn_imagenet.tasks import prepare

CONFIGS = Path(__file__).parents[2] / "configs"


def config(*overrides: str) -> ExperimentConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return from_hydra(compose("config", ["data=digits", "trainer.device=cpu", *overrides]))


def test_a_network_without_feature_maps_is_an_error() -> None:
    image_size = ("data.image_size=224", "data.resize_size=224")
    with pytest.raises(ConfigError, match=r"model\.name=vit_tiny_patch16_224: images of 224 x 224"):
        prepare(config("model.name=vit_tiny_patch16_224", *image_size))


def test_the_check_does_not_change_the_running_statistics() -> None:
    network = prepare(config("model=resnet14_mini", "norm=bn")).network
    assert int(network.get_buffer("bn1.num_batches_tracked")) == 0
    assert not network.get_buffer("bn1.running_mean").any()
