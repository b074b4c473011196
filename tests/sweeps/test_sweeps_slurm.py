"""``hydra/launcher=submitit_slurm`` on a real one-node Slurm, if this machine can run one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
