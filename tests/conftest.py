"""Shared by all tests: the config as the entry points get it, and the count of slow tests."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


_SLOW = pytest.StashKey[int]()  # number of slow tests that were deselected


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    stash = items[0].config.stash
    slow = sum(item.get_closest_marker("slow") is not None for item in items)
    stash[_SLOW] = stash.get(_SLOW, 0) + slow


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["slow"] = session.config.stash.get(_SLOW, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the count of one xdist worker: all workers deselect the same tests."""
    node.config.stash[_SLOW] = getattr(node, "workeroutput", {}).get("slow", 0)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the last line of ``make test``, below pytest's summary."""
    deselected = config.stash.get(_SLOW, 0)
    only_fast = config.getoption("markexpr") == "not slow"
    if only_fast and deselected and not hasattr(config, "workeroutput"):
        print(
            f"not run: the {deselected} slow tests (whole commands, kills, "
            "several processes, Slurm); make test-all runs everything"
        )


@pytest.fixture(scope="session")
def composed() -> Callable[..., ExperimentConfig]:
    """``composed("data=digits", ...)`` returns the config as train.py would get it."""

    def compose_with(*overrides: str) -> ExperimentConfig:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return from_hydra(compose("config", list(overrides)))

    return compose_with
