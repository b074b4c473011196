"""The ``sweep`` section of the config: how ``python train.py -m`` executes its runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import DictConfig

from sn_imagenet.config import structured
from sn_imagenet.config.checks import require_at_least


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
        require_at_least("sweep", self, gpus_per_run=1, slots=1, retries=0)


def sweep_settings(composed: DictConfig) -> SweepSettings:
    """Validate the ``sweep`` section of a composed config.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or range.
    """
    return structured(SweepSettings, composed.get("sweep") or {}, "sweep.")
