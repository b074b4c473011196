"""Sweeps of short runs on the digits, end to end: ``hydra/launcher=local``, and Hydra's basic
launcher, which executes runs one by one in the same processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = ["data=digits", "model=resnet14_mini", "batch=8x8", "trainer.max_steps=3"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def sweep(runs, *overrides, launcher="local", processes=1):
    """Start a sweep and return its process."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(ROOT / "train.py")]
    command += ["-m", f"hydra/launcher={launcher}", f"runs_dir={runs}"]
    return subprocess.Popen(
        [*command, *SHORT, *overrides],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=1800):
    try:
        return process.communicate(timeout=timeout)[0], process.returncode
    finally:
        process.kill()


def run_dir(runs, norm, seed=0):
    return runs / "digits" / "resnet14_mini" / norm / "8x8" / f"seed{seed}"


def await_first_step(runs, process):
    metrics = run_dir(runs, "bn") / "metrics.jsonl"
    while not (metrics.exists() and '"kind": "train"' in metrics.read_text()):
        assert process.poll() is None, finish(process)
        time.sleep(0.05)


@pytest.mark.slow
def test_two_sweeps_in_one_folder_execute_each_run_once(tmp_path):
    both = [sweep(tmp_path, "norm=bn,gn", "sweep.slots=1") for _ in range(2)]
    for process in both:
        output, code = finish(process)
        assert code == 0, output
        assert "2 runs: 2 finished" in output
    for norm in ("bn", "gn"):
        log = (run_dir(tmp_path, norm) / "log.txt").read_text()
        assert log.count("8 replicas of 8 samples") == 1, log
        result = json.loads((run_dir(tmp_path, norm) / "result.json").read_text())
        assert result["status"] == "finished" and result["training"]["world_sizes"] == [1]

    # A dry run lists finished runs and estimates the time of another run from their speed.
    output, code = finish(sweep(tmp_path, "norm=bn,gn,sn", "sweep.dry_run=true", "sweep.slots=2"))
    assert code == 0 and output.count("already finished") == 2, output
    results = [run_dir(tmp_path, norm) / "result.json" for norm in ("bn", "gn")]
    speeds = [json.loads(file.read_text())["training"]["images_per_s"] for file in results]
    hours = 3 * 64 / (sum(speeds) / 2) / 3600  # three steps of 64 samples
    assert f"GPU-hours of 1 run: {hours:.3g}, " in output, output
    assert f"{hours / 2:.3g} hours on 2 slots" in output
    assert not run_dir(tmp_path, "sn").exists()
    status = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "sweep_status.py"), "--runs", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert status.returncode == 0 and "2 runs: 2 finished" in status.stdout


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(tmp_path):
    broken = run_dir(tmp_path, "bn")
    broken.mkdir(parents=True)
    for name in ("last.pt", "previous.pt"):
        (broken / name).write_bytes(b"no checkpoint")
    output, code = finish(sweep(tmp_path, "norm=bn,gn", "sweep.gpus_per_run=1"))
    assert code == 1, output
    assert "2 runs: 1 failed, 1 finished" in output
    assert "no checkpoint of this run is readable" in output
    assert (broken / "log.txt").read_text().count("# attempt") == 1


@pytest.mark.slow
def test_an_interrupted_sweep_stops_its_run_and_resumes_later(tmp_path, monkeypatch):
    """Ctrl-C reaches the whole process group, and the run's data loader has a worker."""
    # An epoch takes half a minute, and validation waits until the pauses are removed.
    pauses = tmp_path / "pauses"
    pauses.mkdir()
    (pauses / "BN").write_text("0.1")
    (pauses / "BN.held").write_text("/")
    monkeypatch.setitem(ENVIRONMENT, "PAUSES", str(pauses))
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(ROOT / "tests"))
    long = ["norm=bn", "norm.target=slow_norms.BN", "trainer.max_steps=25", "trainer.log_every=1"]
    long.append("data.workers=1")
    process = sweep(tmp_path, *long, "evaluate=false")
    await_first_step(tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)
    output, code = finish(process)
    assert code == os.EX_TEMPFAIL, output
    assert "DataLoader worker" not in (run_dir(tmp_path, "bn") / "log.txt").read_text()
    assert "1 run is saving its checkpoint" in output and "1 run: 1 stopped" in output
    assert not (run_dir(tmp_path, "bn") / "result.json").exists()

    shutil.rmtree(pauses)
    output, code = finish(sweep(tmp_path, *long, "evaluate=false"))
    assert code == 0 and "1 run: 1 finished" in output
    assert "Resuming from" in (run_dir(tmp_path, "bn") / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_ends_a_basic_sweep_with_its_current_run(tmp_path, monkeypatch, processes):
    # Slow steps, so that the signal arrives in one: before the first it is reported otherwise.
    (tmp_path / "BN").write_text("0.1")
    monkeypatch.setitem(ENVIRONMENT, "PAUSES", str(tmp_path))
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(ROOT / "tests"))
    long = ("norm=bn", "norm.target=slow_norms.BN", "trainer.log_every=1", "evaluate=false")
    process = sweep(tmp_path, "seed=0,1", *long, launcher="basic", processes=processes)
    await_first_step(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    output, code = finish(process)
    assert output.count("Interrupted: checkpoint saved at step") == 1, output
    assert code == (os.EX_TEMPFAIL if processes == 1 else 1), output
    assert (run_dir(tmp_path, "bn") / "last.pt").exists()
    assert not (run_dir(tmp_path, "bn") / "lock.json").exists()
    assert not run_dir(tmp_path, "bn", seed=1).exists()


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["seed=0,1", "run_dir=there"], "share the run directory"),
        (["sweep.gpus_per_run=3"], "3 processes cannot host the setting"),
        (["data=imagefolder", "data.train=/absent", "data.val=/absent"], "/absent (data.train)"),
        (["data=imagenet", "data.root=/absent", "sweep.dry_run=true"], "/absent"),
    ],
)
def test_an_invalid_sweep_is_refused_before_it_starts(tmp_path, overrides, error):
    output, code = finish(sweep(tmp_path, *overrides))
    assert code == 2 and output.startswith("error: ") and error in output, output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("**/log.txt"))
