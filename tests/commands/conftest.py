"""Runs that several tests use, made once for all pytest workers."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from command_line import MODEL_DIR, ROOT, SMALL, Completed, check_ok, run, train

MakeOnce = Callable[[str, Callable[[Path], Completed]], tuple[Path, Completed]]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """``make_once(name, make)``: a folder that ``make`` filled, and its command's output."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # shared by all workers

    def made_once(name: str, make: Callable[[Path], Completed]) -> tuple[Path, Completed]:
        folder, saved = base / name, base / f"{name}.json"
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not saved.exists():
                folder.mkdir()
                saved.write_text(json.dumps(asdict(make(folder))))
        return folder, Completed(**json.loads(saved.read_text()))

    return made_once


# SN at (8,4), four epochs of 43 steps: x0.1 after one and two of them.
RUN_ARGUMENTS = (*SMALL, "norm=sn", "batch=8x4", "trainer.epochs=4", "trainer.log_every=10")


@pytest.fixture(scope="session")
def base_run(make_once: MakeOnce) -> tuple[Path, Completed]:
    """A run from its config to its result: (run directory, the command's output)."""
    runs, done = make_once("run", lambda runs: train(*RUN_ARGUMENTS, f"runs_dir={runs}"))
    return runs / MODEL_DIR / "sn/8x4/seed0", check_ok(done)


SWEEP = ("-m", "norm=bn,sn", "batch=8x8,8x2", *SMALL, "trainer.epochs=1", "trainer.log_every=1")
SWEPT = ("bn/8x8", "bn/8x2", "sn/8x8", "sn/8x2")


@pytest.fixture(scope="session")
def sweep_of_one(make_once: MakeOnce) -> tuple[Path, Completed]:
    """Four runs by ``python train.py -m``: (runs folder, the command's output)."""
    return make_once("sweep_of_one", lambda runs: train(*SWEEP, f"runs_dir={runs}"))


@pytest.fixture(scope="session")
def sweep_of_two(make_once: MakeOnce) -> tuple[Path, Completed]:
    """The same four runs by two processes of torchrun, started in another folder, ``cwd``."""

    def make(folder: Path) -> Completed:
        (folder / "cwd").mkdir()
        arguments = (*SWEEP, f"runs_dir={folder / 'runs'}")
        return run(str(ROOT / "train.py"), *arguments, processes=2, cwd=folder / "cwd")

    return make_once("sweep_of_two", make)
