"""The configuration of a run, as train.py composes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from sn_imagenet.config import ExperimentConfig, from_hydra
from sn_imagenet.errors import ConfigError


def composed(configs: Path, overrides: Sequence[str]) -> ExperimentConfig:
    """What ``train.py OVERRIDES`` would run; ``configs`` is its folder of choices.

    Raises:
        ConfigError: a choice that there is not, or a value that is wrong.
    """
    try:
        with initialize_config_dir(str(configs), version_base="1.3"):
            return from_hydra(compose("config", list(overrides)))
    except HydraException as error:
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error
