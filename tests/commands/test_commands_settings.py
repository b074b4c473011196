"""``batch=GxN`` for any G and N, with or without a file configs/batch/GxN.yaml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import check_ok, train_forked
from hydra.errors import HydraException

from sn_imagenet.config import ExperimentConfig

FILES = ["1x16", "1x32", "1x8", "8x1", "8x16", "8x2", "8x32", "8x4", "8x8"]
DIGITS = ("data=digits", "model=resnet14_mini", "norm=sn")
PLAN = (*DIGITS, "hydra/launcher=local", "sweep.dry_run=true")
Compose = Callable[..., ExperimentConfig]


@pytest.mark.parametrize(("name", "gpus", "samples"), [("4x6", 4, 6), ("3x1", 3, 1), ("8x2", 8, 2)])
def test_any_setting_composes(composed: Compose, name: str, gpus: int, samples: int) -> None:
    config = composed(f"batch={name}")
    assert config == composed(f"batch.gpus={gpus}", f"batch.samples_per_gpu={samples}")
    assert config.batch.name == name
    assert config.run_dir == f"runs/imagenet/resnet50/sn/{name}/seed0"
    assert composed(f"batch={name}", "batch.gpus=5").batch.name == f"5x{samples}"


@pytest.mark.parametrize("name", ["8y2", "x2", "8x", "8x2x2", "-8x2", "8x2.5", "٨x٢"])
def test_other_names_are_unknown(composed: Compose, name: str) -> None:
    with pytest.raises(HydraException):
        composed(f"batch={name}")


def _planned(*arguments: str, folder: Path) -> list[str]:
    """The settings of the runs in the plan of a sweep, in order."""
    runs = f"runs_dir={folder / 'runs'}"
    done = train_forked(*arguments, *PLAN, runs, "-m", folder=folder / "logs")
    names = [line.split()[0] for line in check_ok(done).out.splitlines() if "/seed0 " in line]
    assert all(name.startswith("digits/resnet14_mini/sn/") for name in names)
    return [name.split("/")[3] for name in names]


def test_a_glob_expands_to_the_files_only(tmp_path: Path) -> None:
    assert _planned("batch=glob(*)", folder=tmp_path) == FILES
