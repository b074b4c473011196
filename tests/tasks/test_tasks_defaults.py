"""What a task's config changes in the defaults of other groups, and what overrides it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sn_imagenet.config import ExperimentConfig

TASK = """# @package _global_
defaults:
  - override /data: digits
  - override /model: resnet14_mini
  - override /batch: 1x4

task:
  name: mine
  target: mine.Mine
  row: scratch

trainer:
  epochs: null
  max_steps: 40000
"""
SWEEP = """# @package _global_
defaults:
  - override /task: mine
  - override /batch: 2x4

trainer:
  max_steps: 300
"""


@pytest.fixture
def mine(composed: Callable[..., ExperimentConfig], tmp_path: Path) -> Callable[..., list[object]]:
    """Composes overrides with the task and the sweep; gives batch, data, crop, epochs, steps."""
    for name, text in (("task", TASK), ("sweep", SWEEP)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.yaml").write_text(text)

    def values(*overrides: str) -> list[object]:
        config = composed(f"hydra.searchpath=[file://{tmp_path}]", *overrides)
        assert config.task["name"] == "mine"
        assert config.run_dir.split("/")[2] == f"{config.model.name}-scratch"
        trainer = config.trainer
        names = [config.batch.name, config.data.name, config.augment.name]
        return [*names, trainer.epochs, trainer.max_steps]

    return values


def test_a_task_brings_the_defaults_of_its_protocol(mine: Callable[..., list[object]]) -> None:
    # Digits choose their own augmentation, also as the default of a task.
    assert mine("task=mine") == ["1x4", "digits", "crop", None, 40000]


def test_the_command_line_overrides_a_tasks_defaults(mine: Callable[..., list[object]]) -> None:
    overrides = ("batch=8x2", "data=cifar10", "augment=none", "trainer.max_steps=5")
    assert mine("task=mine", *overrides) == ["8x2", "cifar10", "none", None, 5]


def test_a_sweep_overrides_a_tasks_defaults(mine: Callable[..., list[object]]) -> None:
    assert mine("sweep=mine") == ["2x4", "digits", "crop", None, 300]
    assert mine("sweep=mine", "batch=1x1")[0] == "1x1"
