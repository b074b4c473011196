"""A signal under Hydra's basic launcher, which executes runs one by one in the same processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SWEEP = ("-m", "norm=bn,gn", "data=digits", "model=resnet14_mini", "batch=8x8")


def sweep(runs, processes, *overrides):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*command, str(ROOT / "train.py"), *SWEEP, f"runs_dir={runs}", *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_dir(runs, norm):
    return runs / "digits" / "resnet14_mini" / norm / "8x8" / "seed0"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_ends_the_sweep_with_its_current_run(tmp_path, processes):
    process = sweep(tmp_path, processes, "trainer.log_every=1", "evaluate=false")
    metrics = run_dir(tmp_path, "bn") / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=1800)
    assert output.count("Interrupted: checkpoint saved at step") == 1, output
    assert process.returncode == (os.EX_TEMPFAIL if processes == 1 else 1), output
    assert (run_dir(tmp_path, "bn") / "last.pt").exists()
    assert not (run_dir(tmp_path, "bn") / "lock.json").exists()
    assert not run_dir(tmp_path, "gn").exists()
