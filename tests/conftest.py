"""What every room's tests share: the configuration as the entry points get it."""

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

# Whoever starts the tests in the background may ignore these; the runs that the tests start would
# inherit that, and a signal that is ignored at the start stays ignored.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The tests run side by side and start processes of their own.
    torch.set_num_threads(1)


_NOT_RUN = pytest.StashKey[int]()  # how many slow tests were left out


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    stash = items[0].config.stash
    slow = sum(item.get_closest_marker("slow") is not None for item in items)
    stash[_NOT_RUN] = stash.get(_NOT_RUN, 0) + slow


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not run"] = session.config.stash.get(_NOT_RUN, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Each of xdist's workers leaves out the same."""
    node.config.stash[_NOT_RUN] = getattr(node, "workeroutput", {}).get("not run", 0)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line of ``make test``, below pytest's own."""
    not_run = config.stash.get(_NOT_RUN, 0)
    plain = config.getoption("markexpr") == "not slow"
    if plain and not_run and not hasattr(config, "workeroutput"):
        print(
            f"not run: the {not_run} slow tests (whole commands, kills, "
            "several processes, Slurm); make test-all runs everything"
        )


@pytest.fixture(scope="session")
def composed() -> Callable[..., ExperimentConfig]:
    """``composed("data=digits", ...)``: the config as train.py would get it."""

    def compose_with(*overrides: str) -> ExperimentConfig:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return from_hydra(compose("config", list(overrides)))

    return compose_with
