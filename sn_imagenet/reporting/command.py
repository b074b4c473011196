"""Options, warnings and errors of the scripts that read a folder of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from sn_imagenet.errors import UserError

PAPER = Path(__file__).resolve().parents[2] / "results" / "paper.yaml"


class HasWarnings(Protocol):
    """A script's result, with one line for each problem in the runs."""

    @property
    def warnings(self) -> Sequence[str]: ...


T = TypeVar("T", bound=HasWarnings)


def runs_parser(description: str, out: str, paper: bool = True) -> argparse.ArgumentParser:
    """A parser of ``--runs``, ``--out`` (with ``out`` as help), ``--brief`` and ``--paper``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder to search for runs; default runs"
    )
    parser.add_argument("--out", type=Path, required=True, help=out)
    brief = "print results alone, no notes, file names or warnings"
    parser.add_argument("--brief", action="store_true", help=brief)
    if paper:
        parser.add_argument(
            "--paper", type=Path, default=PAPER, metavar="FILE", help="default results/paper.yaml"
        )
    return parser


def add_expected(parser: argparse.ArgumentParser) -> None:
    """Add ``--expected``, a study's own statements."""
    parser.add_argument(
        "--expected", type=Path, metavar="FILE", help="a study's statements: results/expected/*"
    )


def call_or_exit(function: Callable[[], T], brief: bool) -> T:
    """Return the result of ``function``; print its warnings to stderr unless ``brief``.

    Raises:
        SystemExit: with code 2, after one line on stderr, if ``function`` raises a UserError.
    """
    try:
        result = function()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    for warning in () if brief else result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return result
