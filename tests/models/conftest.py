"""Run directories with trained networks, for the tests of models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from trained_runs import Trained, write_trained

from sn_imagenet.config import ExperimentConfig


@pytest.fixture
def trained(tmp_path: Path, composed: Callable[..., ExperimentConfig]) -> Callable[..., Trained]:
    """``trained("norm=sn", ...)`` writes a run directory as it is after the last step."""

    def make(*overrides: str) -> Trained:
        run = tmp_path / "-".join(overrides).replace("/", "_")
        return write_trained(
            composed("data=digits", "model=resnet14_mini", f"run_dir='{run}'", *overrides)
        )

    return make
