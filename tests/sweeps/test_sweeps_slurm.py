"""``hydra/launcher=submitit_slurm`` on a real one-node Slurm, if this machine can run one, and its
rendezvous of two nodes, with two torchrun agents."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_files import first_evaluations

from hydra_plugins.sn_launchers.slurm_launcher import rendezvous
from sn_imagenet.sweeps.starters import torchrun

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("slurm_local.sh")
SKIPPED = 77
RUN = ("data=digits", "model=resnet14_mini", "norm=sn", "batch=8x8", "trainer.epochs=1")


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


def port_is_free(job):
    with socket.socket() as probe:
        return probe.connect_ex((socket.gethostname(), 20000 + job % 10000)) != 0


@pytest.fixture
def two_nodes(monkeypatch, tmp_path):
    """The variables that Slurm sets in the jobs of two nodes; both are this machine."""
    monkeypatch.setenv("SLURM_JOB_ID", str(next(filter(port_is_free, range(os.getpid(), 2**30)))))
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_JOB_NODELIST", socket.gethostname())
    # scontrol expands a list of nodes, here one name; the real one needs a configured cluster.
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\necho "$3"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)


def agent(run_dir, processes, options=()):
    script = [str(ROOT / "train.py"), *RUN, f"run_dir={run_dir}"]
    return subprocess.Popen(
        torchrun(processes, script, options),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_nodes_give_the_result_of_one_node_with_as_many_processes(two_nodes, tmp_path):
    options = rendezvous()
    assert "--nnodes=2" in options and "--rdzv_backend=c10d" in options
    nodes = [agent(tmp_path / "two", 1, options) for _ in range(2)]
    try:
        outputs = [node.communicate(timeout=1800)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    one = agent(tmp_path / "one", 2)
    output, _ = one.communicate(timeout=1800)
    assert one.returncode == 0, output

    runs = tmp_path / "two", tmp_path / "one"
    models = [torch.load(run / "final.pt", weights_only=True)["model"] for run in runs]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[1])
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    assert first_evaluations(results[0]) == first_evaluations(results[1])
    assert results[0]["training"]["world_sizes"] == [2]
