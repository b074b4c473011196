"""Checks the cluster's records and the runs of slurm_local.sh.

slurm_check.py WORK BN GN SN: the folder and the jobs' ids. Exit code 0 if each job was requeued
for its intended reason and its result equals the uninterrupted run's.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from same_results import IGNORED, read_results, same

RUNS = Path("digits", "resnet14_mini")


def main(work: Path, signaled: str, limited: str, preempted: str) -> int:
    """Print the problems of each job; return the number of jobs with problems."""
    controller = (work / "slurmctld.log").read_text()
    daemon = (work / "slurmd.log").read_text()
    failures = 0
    for norm, job, why in (
        ("bn", signaled, "scancel --signal=USR1"),
        ("gn", limited, "its time limit"),
        ("sn", preempted, "preemption"),
    ):
        problems = []
        run = RUNS / f"slow_{norm}" / "8x8" / "seed0"
        training = json.loads((work / "runs" / run / "result.json").read_text())["training"]
        starts = len(training["world_sizes"])
        restarts, causes = _restarts(job), list(_causes(job, controller, daemon))
        if restarts < 1 or starts < 2:
            problems.append("Slurm did not requeue it, or it was not interrupted")
        if causes != [why]:
            problems.append(f"Slurm's records say {causes}")
        ignored = [*IGNORED, "training.*"]
        results = (read_results(work / kind / run, ignored) for kind in ("uninterrupted", "runs"))
        if not same(str(run), *results):
            problems.append("it differs from the uninterrupted run")
        summary = "; ".join(problems) or "identical to the uninterrupted run"
        print(f"job {job}, requeued {restarts} times by {why}, {starts} starts: {summary}")
        failures += bool(problems)
    return failures


def _restarts(job: str) -> int:
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
    return int(re.findall(r"Restarts=(\d+)", shown.stdout)[0])


def _causes(job: str, controller: str, daemon: str) -> Iterator[str]:
    """How Slurm ended a job, according to its logs."""
    if f"warning signal 10 to JobId={job}\n" in controller:
        yield "its time limit"
    elif re.search(rf"sending signal 10 to (all steps job |StepId=){job}\b", daemon):
        yield "scancel --signal=USR1"
    if f"preempted JobId={job} has been requeued" in controller:
        yield "preemption"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
