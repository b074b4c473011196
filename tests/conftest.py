"""Shared by all tests: the config as the entry points get it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from sn_imagenet.config import ExperimentConfig, from_hydra

ROOT = Path(__file__).parents[1]

# A shell that starts the tests in the background may ignore these signals. The runs that the tests
# start would inherit that, and a signal that is ignored at start stays ignored.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The tests run in parallel and start further processes.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def composed() -> Callable[..., ExperimentConfig]:
    """``composed("data=digits", ...)`` returns the config as train.py would get it."""

    def compose_with(*overrides: str) -> ExperimentConfig:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return from_hydra(compose("config", list(overrides)))

    return compose_with
