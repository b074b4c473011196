"""``hydra/launcher=submitit_slurm`` on a real one-node Slurm, where this machine can have one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "dev" / "slurm_local.sh"
CANNOT = 77


def run(*arguments):
    command = ["env", f"PYTHON={sys.executable}", "bash", str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=480)
    output = done.stdout + done.stderr
    if done.returncode == CANNOT:
        pytest.skip(output.strip().splitlines()[-1])
    return output, done.returncode


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("SN_IMAGENET_SLURM") != "1",
    reason="set SN_IMAGENET_SLURM=1: installs Slurm, and its second job meets its time limit of a "
    "minute only where training takes longer",
)
def test_preempted_and_timed_out_jobs_are_requeued_and_end_as_undisturbed():
    run("check")
    output, code = run()
    assert code == 0, output
    assert output.count("the same as undisturbed") == 2
