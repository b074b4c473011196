"""The ``sweep`` section of the config: how ``python train.py -m`` carries out its cells."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sn_imagenet.errors import ConfigError


@dataclass
class SweepSettings:
    """No part of any cell: none of it changes a result.

    ``gpus_per_run``: processes of one cell, each with a GPU of its own where there are GPUs.
    ``slots``: cells at a time; None for as many as the machine's GPUs, or without GPUs its cores,
    can hold. ``retries``: how often a failed cell is started again, from its last checkpoint.
    ``dry_run``: list the cells and start none. ``measured``: JSON files of
    ``scripts/benchmark.py train``, whose images/s a dry run counts with.
    """

    gpus_per_run: int = 1
    slots: int | None = None
    retries: int = 1
    dry_run: bool = False
    measured: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key in ("gpus_per_run", "slots"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"sweep.{key}={value}: expected a whole number of at least 1")
        if self.retries < 0:
            raise ConfigError(f"sweep.retries={self.retries}: expected 0 or more")


def sweep_settings(composed: DictConfig) -> SweepSettings:
    """Validate the ``sweep`` section of a composed config.

    Raises:
        ConfigError: a key is unknown, or a value is of the wrong type or range.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SweepSettings), composed.get("sweep") or {})
        settings = OmegaConf.to_object(merged)
    except ConfigError:
        raise
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "section"
        raise ConfigError(f"sweep.{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(settings, SweepSettings)
    return settings
