"""Composes the configuration of a run as train.py does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from sn_imagenet.config import ExperimentConfig, from_hydra
from sn_imagenet.errors import ConfigError
from sn_imagenet.overrides import describe_error


def compose_config(configs: Path, overrides: Sequence[str]) -> ExperimentConfig:
    """The configuration that ``train.py OVERRIDES`` would run, from the folder ``configs``.

    Raises:
        ConfigError: a choice does not exist, or a value is invalid.
    """
    try:
        with initialize_config_dir(str(configs), version_base="1.3"):
            return from_hydra(compose("config", list(overrides)))
    except HydraException as error:
        raise ConfigError(describe_error(error)) from error
