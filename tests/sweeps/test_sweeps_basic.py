"""Failures under Hydra's basic launcher, which executes runs one by one in the same processes."""

from __future__ import annotations

import json
import os
import re
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
def test_a_failed_run_is_reported_once_and_the_next_one_starts(tmp_path, processes):
    run_dir(tmp_path, "bn").mkdir(parents=True)
    for name in ("last.pt", "previous.pt"):
        (run_dir(tmp_path, "bn") / name).write_bytes(b"no checkpoint")
    process = sweep(tmp_path, processes, "trainer.max_steps=2", "evaluate=false")
    output, _ = process.communicate(timeout=1800)
    assert output.count("error: no checkpoint of this run is readable") == 1, output
    result = json.loads((run_dir(tmp_path, "gn") / "result.json").read_text())
    assert result["status"] == "finished" and result["training"]["world_size"] == processes
    # All ranks exit with the same code at the end; torchrun itself exits with 1 in any case.
    if processes == 1:
        assert process.returncode == 2
    else:
        assert re.findall(r"exitcode +: (-?\d+)", output) == ["2"] * processes, output
    assert "destroy_process_group() was not called" not in output
    assert "Traceback" not in output.split("torch/distributed/")[0]


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
