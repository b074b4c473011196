"""Options, warnings and errors of the scripts that read a folder of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sn_imagenet.reporting.render import plain

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
            print(f"warning: {plain(warning)}", file=sys.stderr)
        for text in (self.brief,) if brief else (self.text, *self.paths):
            if text != "":
                print(text if isinstance(text, str) else plain(str(text)))


def names(text: str) -> list[str]:
    """The names in ``bn,gn``."""
    return [name for name in text.split(",") if name]


def runs_parser(
    description: str, out: str, *, paper: bool = True, expected: bool = False
) -> argparse.ArgumentParser:
    """A parser of ``--runs``, ``--out`` (with ``out`` as help), ``--brief``, ``--settings``,
    ``--methods``, with ``paper`` ``--against``, and if ``expected`` a study's own statements."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder to search for runs; default runs"
    )
    parser.add_argument("--out", type=Path, required=True, help=out)
    brief = "print results alone, no notes, file names or warnings"
    parser.add_argument("--brief", action="store_true", help=brief)
    settings = "settings to show, in this order; default: the paper's nine and others of the runs"
    parser.add_argument("--settings", type=names, metavar="8x8,8x2,..", help=settings)
    methods = "methods to show, in this order; default: BN, GN, SN and others of the runs"
    parser.add_argument("--methods", type=names, metavar="sn,half,..", help=methods)
    if paper:
        against = "methods to compare all others with; default: as the paper, your own with all"
        parser.add_argument("--against", type=names, metavar="bn,gn", help=against)
    if expected:
        statements = "a study's statements: results/expected/*"
        parser.add_argument("--expected", type=Path, metavar="FILE", help=statements)
    return parser


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """The options of :meth:`.RunCollection.read` among the arguments."""
    keys = ("settings", "methods", "against", "epoch")
    return {key: value for key, value in vars(args).items() if key in keys}
