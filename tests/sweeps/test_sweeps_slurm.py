"""``hydra/launcher=submitit_slurm`` on a real one-node Slurm, if this machine can run one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("slurm_local.sh")
SKIPPED = 77


def run(*arguments):
    command = ["env", f"PYTHON={sys.executable}", "bash", str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    output = done.stdout + done.stderr
    if done.returncode == SKIPPED:
        pytest.skip(output.strip().splitlines()[-1])
    return output, done.returncode


@pytest.mark.slow
def test_jobs_that_slurm_ends_are_requeued_and_finish_identically():
    """Slurm ends them by a signal, a time limit and a preemption, as its records confirm."""
    run("check")
    output, code = run()
    assert code == 0, f"{output[:3_000]}\n...\n{output[-9_000:]}"  # script output, then logs
    for cause in ("scancel --signal=USR1", "its time limit", "preemption"):
        (line,) = [line for line in output.splitlines() if f"times by {cause}," in line]
        assert line.startswith("job ") and line.endswith(
            " starts: identical to the uninterrupted run"
        )


def test_no_slurm_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    line = [sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=submitit_slurm"]
    line += ["data=digits", "batch=8x2", "norm=bn,sn", f"runs_dir={tmp_path}"]
    line += [f"hydra.launcher.submitit_folder={tmp_path}"]
    without = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(line, cwd=tmp_path, env=without, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: hydra/launcher=submitit_slurm: this machine has no Slurm")
    assert done.stderr.count("\n") == 1
