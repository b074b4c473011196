"""Show the status of the runs in a folder: python scripts/sweep_status.py --runs runs

Reads only their files, also while they train. The exit code is 1 if a run has failed or cannot be
read, and 0 otherwise. To repeat it every five seconds: watch -n 5 python scripts/sweep_status.py
"""

from __future__ import annotations

import os
from pathlib import Path

from sn_imagenet.command_line import run_script, script_parser


def main() -> int:
    # Imported here, where Ctrl-C prints no traceback.
    from sn_imagenet.runs import FAILED, UNREADABLE, find_runs, progress_of
    from sn_imagenet.sweeps.board import RunStatus, table

    parser = script_parser(__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="default: runs")
    folder = parser.parse_args().runs
    rows = [
        RunStatus(os.path.relpath(run.path, folder), run.state, progress_of(run))
        for run in find_runs(folder).runs
    ]
    print("\n".join(table(rows)))
    return 1 if any(row.state in (FAILED, UNREADABLE) for row in rows) else 0


if __name__ == "__main__":
    run_script(main)
