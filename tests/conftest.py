"""What every room's tests share: the configuration as the entry points get it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from sn_imagenet.config import ExperimentConfig, from_hydra

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The tests run side by side and start processes of their own.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def composed() -> Callable[..., ExperimentConfig]:
    """``composed("data=digits", ...)``: the config as train.py would get it."""

    def compose_with(*overrides: str) -> ExperimentConfig:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return from_hydra(compose("config", list(overrides)))

    return compose_with
