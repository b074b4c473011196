"""The runs of a sweep, made of what Hydra composed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sn_imagenet.config import ExperimentConfig, from_hydra
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.runs import DIVERGED, FINISHED, NOT_EVALUATED, Progress, read_progress

COMPLETE = (FINISHED, DIVERGED)


@dataclass(frozen=True)
class PlannedRun:
    """A run that a sweep is to bring to its result, and the overrides that ``train.py`` gets."""

    config: ExperimentConfig
    overrides: tuple[str, ...]

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def name(self) -> str:
        """The run directory, below ``runs_dir`` where it lies there."""
        inside = os.path.relpath(self.run_dir, self.config.runs_dir)
        return str(self.run_dir) if inside.startswith("..") else inside

    def state(self) -> tuple[str | None, Progress | None]:
        """What the files say: a state of :data:`sn_imagenet.runs.STATES` (None: never started),
        and how far it is.
        """
        progress = read_progress(self.run_dir)
        if progress is None:
            return None, None
        if progress.state == NOT_EVALUATED and not self.config.evaluate:
            return FINISHED, progress
        return progress.state, progress


def plan_runs(composed: Sequence[tuple[Sequence[str], DictConfig]]) -> list[PlannedRun]:
    """Validate the runs of a sweep before the first one starts.

    Args:
        composed: of each run its overrides and the config that they compose to.

    Raises:
        UserError: a run's config is wrong, or two runs would share a run directory.
    """
    planned: dict[Path, PlannedRun] = {}
    for overrides, config in composed:
        own = tuple(text for text in overrides if is_run_override(text))
        try:
            experiment = [str(key) for key in config if key not in ("hydra", "sweep")]
            run = PlannedRun(from_hydra(OmegaConf.masked_copy(config, experiment)), own)
        except UserError as error:
            raise ConfigError(f"cell {' '.join(own)}: {error}") from error
        other = planned.setdefault(run.run_dir.absolute(), run)
        if other is not run:
            raise ConfigError(
                f"two cells share the run directory {run.run_dir}:\n"
                f"  {' '.join(other.overrides)}\n  {' '.join(own)}\n"
                "Name in run_dir= what they differ in, such as "
                "'run_dir=${runs_dir}/lr${protocol.base_lr}/seed${seed}'."
            )
    return list(planned.values())


def is_run_override(override: str) -> bool:
    """Whether an override is for the run: not for Hydra, not for how the sweep is carried out."""
    key = override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]
    return not key.startswith(("hydra.", "hydra/", "sweep."))
