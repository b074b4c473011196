"""Runs that several tests look at, made once however many workers share the tests."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from command_line import CELL, ROOT, SMALL, Done, run, succeeded, train

Once = Callable[[str, Callable[[Path], Done]], tuple[Path, Done]]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """``once(name, make)``: a folder that ``make`` filled, and what its command said."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the workers'

    def made_once(name: str, make: Callable[[Path], Done]) -> tuple[Path, Done]:
        folder, said = base / name, base / f"{name}.json"
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not said.exists():
                folder.mkdir()
                said.write_text(json.dumps(asdict(make(folder))))
        return folder, Done(**json.loads(said.read_text()))

    return made_once


# SN at (8,4), four epochs of 43 steps: x0.1 after one and two of them.
CELL_ARGUMENTS = (*SMALL, "norm=sn", "batch=8x4", "trainer.epochs=4", "trainer.log_every=10")


@pytest.fixture(scope="session")
def cell(once: Once) -> tuple[Path, Done]:
    """One cell from its config to its result: (run directory, what the command said)."""
    runs, done = once("cell", lambda runs: train(*CELL_ARGUMENTS, f"runs_dir={runs}"))
    return runs / CELL / "sn/8x4/seed0", succeeded(done)


SWEEP = ("-m", "norm=bn,sn", "batch=8x8,8x2", *SMALL, "trainer.epochs=1", "trainer.log_every=1")
SWEPT = ("bn/8x8", "bn/8x2", "sn/8x8", "sn/8x2")


@pytest.fixture(scope="session")
def sweep_of_one(once: Once) -> tuple[Path, Done]:
    """Four cells by ``python train.py -m``: (runs folder, what the command said)."""
    return once("sweep_of_one", lambda runs: train(*SWEEP, f"runs_dir={runs}"))


@pytest.fixture(scope="session")
def sweep_of_two(once: Once) -> tuple[Path, Done]:
    """The same four cells by two processes of torchrun, called from another folder, ``cwd``."""

    def make(folder: Path) -> Done:
        (folder / "cwd").mkdir()
        arguments = (*SWEEP, f"runs_dir={folder / 'runs'}")
        return run(str(ROOT / "train.py"), *arguments, processes=2, cwd=folder / "cwd")

    return once("sweep_of_two", make)
