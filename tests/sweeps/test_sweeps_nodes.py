"""A run on two nodes: two torchrun agents with the rendezvous of the Slurm launcher."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from sweep_outcomes import assert_same_outcome

from hydra_plugins.sn_launchers.slurm_launcher import rendezvous
from sn_imagenet.sweeps.starters import torchrun

ROOT = Path(__file__).parents[2]
RUN = ("data=digits", "model=resnet14_mini", "norm=sn", "batch=8x8", "trainer.epochs=1")


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

    results = assert_same_outcome(tmp_path / "two", tmp_path / "one")
    assert results[0]["training"]["world_sizes"] == [2]
