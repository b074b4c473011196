"""Options, warnings and errors of the scripts that read a folder of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PAPER = Path(__file__).resolve().parents[2] / "results" / "paper.yaml"


class Written(NamedTuple):
    """The files that a script wrote, one line for each problem in the runs, and what it prints: in
    full, or with ``--brief``."""

    paths: Sequence[Path]
    warnings: Sequence[str]
    text: str = ""
    brief: str = ""

    def show(self, brief: bool) -> None:
        """Print the results, and unless ``brief`` the files; the warnings to stderr."""
        for warning in () if brief else dict.fromkeys(self.warnings):
            print(f"warning: {warning}", file=sys.stderr)
        for text in (self.brief,) if brief else (self.text, *self.paths):
            if text != "":
                print(text)


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
