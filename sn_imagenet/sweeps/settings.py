"""The ``sweep`` section of the config: how ``python train.py -m`` executes its runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sn_imagenet.errors import ConfigError


@dataclass
class SweepSettings:
    """Options that change no result and are not part of a run's config.

    ``gpus_per_run``: processes of one run, each with its own GPU if there are GPUs. ``slots``:
    concurrent runs; None for as many as fit on the GPUs, or without GPUs on the cores. ``retries``:
    how often a failed run is started again, from its last checkpoint. ``dry_run``: list the runs
    and start none. ``measured``: JSON reports of ``scripts/benchmark.py train``, whose images/s a
    dry run uses.
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
        ConfigError: a key is unknown, or a value has the wrong type or range.
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
