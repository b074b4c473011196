"""Make the figures from a folder of runs: python scripts/make_figures.py --runs runs --out DIR"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.figures.files import write_figures


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the figures from a folder of runs.")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of runs, searched; default runs"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    args = parser.parse_args()
    try:
        drawn = write_figures(args.runs, args.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for warning in drawn.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for path in drawn.paths:
        print(path)
    return 0 if drawn.paths else 1


if __name__ == "__main__":
    sys.exit(main())
