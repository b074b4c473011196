from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.runs import RunDirectory


@pytest.fixture
def config(composed: Callable[..., ExperimentConfig]) -> ExperimentConfig:
    return composed("data=digits", "model=resnet14_mini", "batch=8x2")


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    path = tmp_path / "run"
    path.mkdir()
    return RunDirectory(path)


@pytest.fixture
def open_directory() -> Iterator[RunDirectory]:
    """A run directory that all users can enter; pytest's temporary folders are the owner's."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "run").mkdir()
        yield RunDirectory(path / "run")
