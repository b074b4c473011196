"""The jobs of a sweep from submission to their end, as squeue and the cells' files tell it.

submitit's own waiting needs sacct, which a cluster without accounting has not, and gives up at the
first job that died. (Hydra's plugin scan skips this file's name.)
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sn_imagenet.runs import FAILED, RUNNING
from sn_imagenet.sweeps.board import Board, RunStatus
from sn_imagenet.sweeps.planned import COMPLETE, PlannedRun
from sn_imagenet.sweeps.pool import ELSEWHERE, WAITING

LOOK_S = 5.0
# After the end of its job, for a result to become visible on this host through a network's caches.
GONE_S = 30.0


def follow(runs: Sequence[PlannedRun], jobs: Mapping[Path, str], logs: str) -> int:
    """Show the table until every cell has its result or its job is gone without one.

    Args:
        jobs: run directory -> the job that was submitted for it, as squeue names it.
        logs: the folder of their logs, with ``%j`` for the job, for the table.

    Returns:
        0 if every cell is finished or diverged, 1 if not.
    """
    board, gone = Board(), dict.fromkeys(jobs, 0.0)
    while True:
        live = live_jobs({job.split("_")[0] for job in jobs.values()})
        now = time.monotonic()
        rows, is_open = [], False
        for run in runs:
            state, progress = run.state()
            job = jobs.get(run.run_dir)
            note = f"job {job}" if job else ""
            if state in COMPLETE:
                note = note or "from before"
            elif live is None or job in live:
                is_open, state, gone[run.run_dir] = True, state or WAITING, 0.0
                state = state if state == RUNNING else WAITING
            elif state == RUNNING:
                is_open, state, note = True, ELSEWHERE, ""
            else:
                gone[run.run_dir] = gone[run.run_dir] or now
                is_open |= now - gone[run.run_dir] < GONE_S
                why = progress.detail if progress and progress.detail else "ended without a result"
                log = logs.replace("%j", str(job).split("_")[0])
                state, note = FAILED, f"job {job}: {why} (see {log})"
            rows.append(RunStatus(run.name, str(state), progress, note))
        if not is_open:
            board.end(rows)
            return 0 if all(row.state in COMPLETE for row in rows) else 1
        board.show([row for row in rows if row.state != FAILED])
        time.sleep(LOOK_S)


def live_jobs(arrays: set[str]) -> set[str] | None:
    """Those of the arrays' jobs that wait, run or end; None where Slurm cannot tell now."""
    live: set[str] = set()
    for array in arrays:
        command = ["squeue", "--noheader", "--array", f"--jobs={array}", "--format=%i"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            live |= set(done.stdout.split())
        elif "Invalid job id" not in done.stderr:  # what it says once all have ended
            return None
    return live
