"""What the scripts over a folder of runs have in common: options, warnings, errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from sn_imagenet.errors import UserError

PAPER = Path(__file__).resolve().parents[2] / "results" / "paper.yaml"


class Made(Protocol):
    """What a script has made, with one line for each thing amiss."""

    @property
    def warnings(self) -> Sequence[str]: ...


T = TypeVar("T", bound=Made)


def runs_parser(description: str, out: str, paper: bool = True) -> argparse.ArgumentParser:
    """Of ``--runs``, ``--out`` (whose help is ``out``) and, where wanted, ``--paper``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of runs, searched; default runs"
    )
    parser.add_argument("--out", type=Path, required=True, help=out)
    if paper:
        parser.add_argument(
            "--paper", type=Path, default=PAPER, metavar="FILE", help="default results/paper.yaml"
        )
    return parser


def add_expected(parser: argparse.ArgumentParser) -> None:
    """Of ``--expected``, a study's own statements."""
    parser.add_argument(
        "--expected", type=Path, metavar="FILE", help="a study's statements: results/expected/*"
    )


def made(make: Callable[[], T]) -> T:
    """What ``make`` returns; its warnings go to stderr.

    Raises:
        SystemExit: 2, after one line, where ``make`` raises a UserError.
    """
    try:
        done = make()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return done
