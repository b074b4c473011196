"""Starts real training runs for the tests of resuming."""

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
    run_dir: Path,
    *overrides: str,
    processes: int = 1,
    torchrun: tuple[str, ...] = (),
    program: tuple[str, ...] = ("train.py",),
    before: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    """Start ``train.py``, under torchrun if ``processes`` > 1.

    ``program``: another script and its arguments, which precede the overrides.
    ``before``: a command that runs the command, such as ``env``.
    """
    command = [*before, sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", *torchrun]
        command += [f"--nproc_per_node={processes}"]
    command += [str(ROOT / program[0]), *program[1:], *SHORT, f"run_dir={run_dir}", *overrides]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_reading(run_dir: Path, *overrides: str, folder: Path) -> subprocess.Popen[str]:
    """Start a run that pauses when reading its data, before locking, until :func:`let_read`."""
    folder.mkdir()
    program = ("tests/resume/held_reader.py", str(folder))
    process = start(run_dir, *overrides, program=program)
    wait_until(lambda: (folder / "reading").exists() or process.poll() is not None)
    assert process.poll() is None, finish(process)
    return process


def let_read(folder: Path) -> None:
    (folder / "go on").touch()


def finish(process: subprocess.Popen[str], timeout: float = 1200) -> tuple[str, int]:
    """Its output and exit code; the process is killed after ``timeout`` seconds."""
    try:
        return process.communicate(timeout=timeout)[0], process.returncode
    finally:
        process.kill()


def steps(run_dir: Path) -> list[int]:
    """The steps of the training rows in ``metrics.jsonl``, in order."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"]


def wait_until(condition: Callable[[], bool], timeout: float = 1200) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition is not fulfilled"
        time.sleep(0.05)


class Pauses:
    """What tests/slow_norms.py obeys: a run with ``OVERRIDES`` can be met at any stage."""

    OVERRIDES = ("norm.target=slow_norms.SN",)

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._layer, self._held = folder / "SN", folder / "SN.held"
        self._calibration, self._calibrating = folder / "SN.calibration", folder / "SN.calibrating"

    def slow_down(self) -> None:
        """Make an epoch take half a minute, and its validation wait."""
        self._layer.write_text("0.1")
        self.hold()

    def hold(self, file: Path = Path("/")) -> None:
        """Make validation and evaluation wait once ``file`` exists."""
        self._held.write_text(str(file))

    def hold_calibration(self) -> None:
        """Make calibration wait."""
        self._calibration.touch()

    def is_calibrating(self) -> bool:
        """Whether a calibration is waiting."""
        return self._calibrating.exists()

    def release(self) -> None:
        for file in (self._layer, self._held, self._calibration):
            file.unlink(missing_ok=True)


def children(pid: int) -> list[int]:
    """The direct children of a process: torchrun's workers."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
