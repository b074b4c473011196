"""What slurm_local.sh expects of its cluster's records and of the runs.

slurm_check.py WORK BN GN SN, the folder and the jobs' ids. Exit code 0 if each job was requeued
for the reason it was meant to be and came to the very result of the undisturbed run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from disturbed import differences

RUNS = Path("digits", "resnet14_mini")


def main(work: Path, signalled: str, limited: str, preempted: str) -> int:
    """Print what was found of each job; the number of those that are not as they should be."""
    controller = (work / "slurmctld.log").read_text()
    daemon = (work / "slurmd.log").read_text()
    wrong = 0
    for norm, job, why in (
        ("bn", signalled, "scancel --signal=USR1"),
        ("gn", limited, "its time limit"),
        ("sn", preempted, "preemption"),
    ):
        found = []
        if _restarts(job) < 1:
            found.append("Slurm did not requeue it")
        if dict(_causes(job, controller, daemon)) != {why: True}:
            found.append(f"Slurm's records say {dict(_causes(job, controller, daemon))}")
        cell = RUNS / f"paused_{norm}" / "8x8" / "seed0"
        found += differences(work / "undisturbed" / cell, work / "runs" / cell)
        training = json.loads((work / "runs" / cell / "result.json").read_text())["training"]
        starts = len(training["world_sizes"])
        if starts < 2:
            found.append("it never was interrupted")
        said = "; ".join(found) or "the same as undisturbed"
        print(f"job {job}, requeued {_restarts(job)} times by {why}, {starts} starts: {said}")
        wrong += bool(found)
    return wrong


def _restarts(job: str) -> int:
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
    return int(re.findall(r"Restarts=(\d+)", shown.stdout)[0])


def _causes(job: str, controller: str, daemon: str) -> Iterator[tuple[str, bool]]:
    """What Slurm itself did to a job, by its logs."""
    warned = f"warning signal 10 to JobId={job}\n" in controller
    if warned:
        yield "its time limit", True
    elif re.search(rf"sending signal 10 to (all steps job |StepId=){job}\b", daemon):
        yield "scancel --signal=USR1", True
    if f"preempted JobId={job} has been requeued" in controller:
        yield "preemption", True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
