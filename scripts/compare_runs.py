"""Compare two runs, or the runs that two folders have in common: compare_runs.py FIRST SECOND

Each pair agrees bit for bit, within rounding, within the spread of seeds, or not. The exit code is
1 if a pair is beyond the spread of seeds, and 0 otherwise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sn_imagenet.command_line import run_script


def main() -> int:
    # Imported here, where Ctrl-C prints no traceback.
    from sn_imagenet.reporting.compare import compare_runs

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=Path, metavar="FIRST", help="a run, or a folder of runs")
    parser.add_argument("second", type=Path, metavar="SECOND", help="what to compare with it")
    args = parser.parse_args()
    text, agree = compare_runs(args.first, args.second)
    print(text)
    return 0 if agree else 1


if __name__ == "__main__":
    run_script(main)
