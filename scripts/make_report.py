"""Make the report page: python scripts/make_report.py --runs runs --out DIR"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.page import write_page

PAPER = Path(__file__).resolve().parent.parent / "results" / "paper.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make one HTML page of a folder of runs.")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of runs, searched; default runs"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for report.html")
    parser.add_argument(
        "--paper", type=Path, default=PAPER, metavar="FILE", help="default results/paper.yaml"
    )
    args = parser.parse_args()
    try:
        written = write_page(args.runs, args.out, args.paper)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for warning in written.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(written.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
