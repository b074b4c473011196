"""Monitors the jobs of a sweep from submission to their end, with squeue and the runs' files.

submitit's own waiting needs sacct, which clusters without accounting lack, and it gives up when the
first job dies. (Hydra's plugin scan skips ``_`` files.)
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

POLL_INTERVAL_S = 5.0
# How long after a job's end its result may take to pass a network file system's caches.
RESULT_DELAY_S = 30.0


def follow(runs: Sequence[PlannedRun], jobs: Mapping[Path, str], logs: str) -> int:
    """Show the table until every run has its result or its job ended without one.

    Args:
        jobs: run directory -> the job submitted for it, as squeue names it.
        logs: the folder of their logs, with ``%j`` for the job; shown in the table.

    Returns:
        0 if every run is finished or diverged, 1 if not.
    """
    board, ended_at = Board(), dict.fromkeys(jobs, 0.0)
    while True:
        live = live_jobs({job.split("_")[0] for job in jobs.values()})
        now = time.monotonic()
        rows, is_open = [], False
        for run in runs:
            state, progress = run.state()
            job = jobs.get(run.run_dir)
            note = f"job {job}" if job else ""
            if state in COMPLETE:
                note = note or "done earlier"
            elif live is None or job in live:
                is_open, state, ended_at[run.run_dir] = True, state or WAITING, 0.0
                state = state if state == RUNNING else WAITING
            elif state == RUNNING:
                is_open, state, note = True, ELSEWHERE, ""
            else:
                ended_at[run.run_dir] = ended_at[run.run_dir] or now
                is_open |= now - ended_at[run.run_dir] < RESULT_DELAY_S
                why = progress.detail if progress and progress.detail else "ended without a result"
                log = logs.replace("%j", str(job).split("_")[0])
                state, note = FAILED, f"job {job}: {why} (see {log})"
            rows.append(RunStatus(run.name, str(state), progress, note))
        if not is_open:
            board.end(rows)
            return 0 if all(row.state in COMPLETE for row in rows) else 1
        board.show([row for row in rows if row.state != FAILED])
        time.sleep(POLL_INTERVAL_S)


def live_jobs(arrays: set[str]) -> set[str] | None:
    """The arrays' jobs that are pending, running or completing; None if squeue fails."""
    live: set[str] = set()
    for array in arrays:
        command = ["squeue", "--noheader", "--array", f"--jobs={array}", "--format=%i"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            live |= set(done.stdout.split())
        elif "Invalid job id" not in done.stderr:  # its message once all jobs have ended
            return None
    return live
