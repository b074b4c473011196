"""Show the status of the runs in a folder: python scripts/sweep_status.py --runs runs

Reads only their files, also while they train; --watch 5 repeats it every 5 seconds. The exit code
is 1 if a run has failed or cannot be read, and 0 otherwise.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from sn_imagenet.command_line import run_script
from sn_imagenet.runs import FAILED, UNREADABLE, find_runs, progress_of
from sn_imagenet.sweeps.board import Board, RunStatus, table


def status_rows(folder: Path) -> list[RunStatus]:
    """A row for each run below ``folder``."""
    runs = find_runs(folder).runs
    return [
        RunStatus(os.path.relpath(run.path, folder), run.state, progress_of(run)) for run in runs
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="default: runs")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="repeat at this interval")
    args = parser.parse_args()
    if args.watch is None:
        rows = status_rows(args.runs)
        print("\n".join(table(rows)))
        return 1 if any(row.state in (FAILED, UNREADABLE) for row in rows) else 0
    board = Board()
    while True:
        board.show(status_rows(args.runs))
        time.sleep(args.watch)


if __name__ == "__main__":
    run_script(main)
