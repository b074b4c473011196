"""The cells of a sweep: what Hydra composed, as tasks for the pool."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sn_imagenet.config import ExperimentConfig, from_hydra
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.sweeps.pool import Task


@dataclass(frozen=True)
class Cell:
    """One experiment of the sweep, and how to start it."""

    config: ExperimentConfig
    task: Task


def make_cells(composed: Sequence[tuple[Sequence[str], DictConfig]]) -> list[Cell]:
    """Validate the cells of a sweep before the first one starts.

    Args:
        composed: of each cell its overrides and the config that they compose to.

    Raises:
        UserError: a cell's config is wrong, or two cells would share a run directory.
    """
    cells: dict[Path, Cell] = {}
    for overrides, config in composed:
        own = tuple(text for text in overrides if is_cells_own(text))
        try:
            experiment = [str(key) for key in config if key not in ("hydra", "sweep")]
            cell = _make(from_hydra(OmegaConf.masked_copy(config, experiment)), own)
        except UserError as error:
            raise ConfigError(f"cell {' '.join(own)}: {error}") from error
        other = cells.setdefault(cell.task.run_dir.absolute(), cell)
        if other is not cell:
            raise ConfigError(
                f"two cells share the run directory {cell.task.run_dir}:\n"
                f"  {' '.join(other.task.overrides)}\n  {' '.join(own)}\n"
                "Name in run_dir= what they differ in, such as "
                "'run_dir=${runs_dir}/lr${protocol.base_lr}/seed${seed}'."
            )
    return list(cells.values())


def is_cells_own(override: str) -> bool:
    """Whether an override is for the cell: not for Hydra, not for how the sweep is carried out."""
    key = override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]
    return not key.startswith(("hydra.", "hydra/", "sweep."))


def _make(config: ExperimentConfig, overrides: tuple[str, ...]) -> Cell:
    run_dir = Path(config.run_dir)
    inside = os.path.relpath(run_dir, config.runs_dir)
    name = str(run_dir) if inside.startswith("..") else inside
    return Cell(config, Task(name, run_dir, overrides, config.evaluate))
