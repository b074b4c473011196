"""Starts real training runs for the tests of resumption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHORT = ("data=digits", "model=resnet14_mini", "batch=8x8", "norm=sn", "trainer.log_every=1")


def start(
    run_dir: Path, *overrides: str, processes: int = 1, torchrun: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """Start ``train.py``, under torchrun where there are several processes."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", *torchrun]
        command += [f"--nproc_per_node={processes}"]
    command += [str(ROOT / "train.py"), *SHORT, f"run_dir={run_dir}", *overrides]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 300) -> tuple[str, int]:
    """Its output and exit code; it is killed after ``timeout`` seconds."""
    try:
        return process.communicate(timeout=timeout)[0], process.returncode
    finally:
        process.kill()


def steps(run_dir: Path) -> list[int]:
    """The steps of the rows of the metrics, in their order."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"]


def wait_until(true: Callable[[], bool], timeout: float = 300) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """The direct children of a process: torchrun's workers."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
