"""The options of a sweep and its runs, from the configs that Hydra composed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sn_imagenet.config import ExperimentConfig, InitialRunError, from_hydra, structured
from sn_imagenet.config.checks import require_at_least
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.runs import DIVERGED, FINISHED, NOT_EVALUATED, Progress, read_progress

COMPLETE = (FINISHED, DIVERGED)


@dataclass
class SweepSettings:
    """The ``sweep`` section of the config: options that change no result and are not part of a
    run's config.

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


@dataclass(frozen=True)
class PlannedRun:
    """A run that a sweep has to complete, and the overrides that it passes to ``train.py``."""

    config: ExperimentConfig
    overrides: tuple[str, ...]

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def name(self) -> str:
        """The run directory, relative to ``runs_dir`` if it is inside."""
        relative = os.path.relpath(self.run_dir, self.config.runs_dir)
        return str(self.run_dir) if relative.startswith("..") else relative

    def state(self) -> tuple[str | None, Progress | None]:
        """The state in the run's files, one of :data:`sn_imagenet.runs.STATES` or None if it was
        never started, and its progress.
        """
        progress = read_progress(self.run_dir)
        if progress is None:
            return None, None
        if progress.state == NOT_EVALUATED and not self.config.evaluate:
            return FINISHED, progress
        return progress.state, progress


def plan_runs(
    composed: Iterable[tuple[Sequence[str], DictConfig]],
    check: Callable[[ExperimentConfig], None] = lambda config: None,
) -> list[PlannedRun]:
    """Validate the runs of a sweep before the first one starts.

    Args:
        composed: the overrides of each run and the config composed from them.
        check: called with each config before the next one is composed, which takes a second.

    Raises:
        UserError: a config is invalid, runs to start from are missing (all are listed), or two runs
            would share a run directory.
    """
    planned: dict[Path, PlannedRun] = {}
    missing: list[str] = []
    for overrides, config in composed:
        own = tuple(text for text in overrides if is_run_override(text))
        try:
            experiment = [str(key) for key in config if key not in ("hydra", "sweep")]
            run = PlannedRun(from_hydra(OmegaConf.masked_copy(config, experiment)), own)
        except InitialRunError as error:
            missing.append(str(error))
            continue
        except UserError as error:
            raise ConfigError(f"run {' '.join(own)}: {error}") from error
        check(run.config)
        other = planned.setdefault(run.run_dir.absolute(), run)
        if other is not run:
            raise ConfigError(
                f"two runs share the run directory {run.run_dir}:\n"
                f"  {' '.join(other.overrides)}\n  {' '.join(own)}\n"
                "Include what differs in run_dir=, such as "
                "'run_dir=${runs_dir}/lr${protocol.base_lr}/seed${seed}'."
            )
    if missing:
        raise ConfigError("\n  ".join(dict.fromkeys(missing)))
    return list(planned.values())


def is_run_override(override: str) -> bool:
    """Whether an override belongs to the run's config rather than to Hydra or the sweep."""
    key = override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]
    return not key.startswith(("hydra.", "hydra/", "sweep."))
