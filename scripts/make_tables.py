"""Make the tables, Table 1 from the modules, the others from a folder of runs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.curves import EPOCH_CHOICES
from sn_imagenet.reporting.tables import TABLES, write_tables

PAPER = Path(__file__).resolve().parent.parent / "results" / "paper.yaml"


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _size(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of runs, searched; default runs"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument(
        "--only",
        type=_names,
        metavar="NAME,..",
        help=f"of {', '.join(TABLES)}; default the first two",
    )
    parser.add_argument(
        "--settings",
        type=_names,
        metavar="8x8,8x2,...",
        help="columns to show, in this order; default the paper's nine and what else was run",
    )
    parser.add_argument(
        "--paper", type=Path, default=PAPER, metavar="FILE", help="default results/paper.yaml"
    )
    epochs = f"a run's number: {', '.join(EPOCH_CHOICES)}"
    parser.add_argument("--epoch", default="final", help=epochs)
    parser.add_argument(
        "--size", type=_size, metavar="N,C,H,W", help="of Table 1's numbers; default 32,64,56,56"
    )
    args = parser.parse_args()

    def count() -> list[dict[str, Any]]:
        # Here, so that the tables of runs can be made without loading torch.
        from sn_imagenet.benchmark.census import SIZE, census

        try:
            return [asdict(row) for row in census(size=args.size or SIZE)]
        except ValueError as error:
            raise UserError(f"--size: {error}") from error

    try:
        written = write_tables(
            args.runs, args.out, args.paper, args.only, args.settings, count, args.epoch
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for warning in written.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(written.summary)
    for path in written.paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
