"""``hydra/launcher=submitit_slurm`` on a real one-node Slurm, where this machine can have one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "dev" / "slurm_local.sh"
CANNOT = 77


def run(*arguments):
    command = ["env", f"PYTHON={sys.executable}", "bash", str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    output = done.stdout + done.stderr
    if done.returncode == CANNOT:
        pytest.skip(output.strip().splitlines()[-1])
    return output, done.returncode


@pytest.mark.slow
def test_jobs_that_slurm_ends_are_requeued_and_end_as_undisturbed():
    """By a signal, by their time limit, by preemption; by Slurm's own records."""
    run("check")
    output, code = run()
    assert code == 0, f"{output[:3_000]}\n...\n{output[-9_000:]}"  # its own lines, then the logs
    for why in ("scancel --signal=USR1", "its time limit", "preemption"):
        (line,) = [line for line in output.splitlines() if f"times by {why}," in line]
        assert line.startswith("job ") and line.endswith(" starts: the same as undisturbed")
