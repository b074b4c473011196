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
    """A run directory that exists and is empty."""
    path = tmp_path / "run"
    path.mkdir()
    return RunDirectory(path)


@pytest.fixture
def open_directory() -> Iterator[RunDirectory]:
    """One that every user may enter (pytest's own temporary folders are the owner's alone)."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "run").mkdir()
        yield RunDirectory(path / "run")
