"""Report of a single run: a table of its evaluations and, for SN, figures of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sn_imagenet.reporting.figures.files import plot_run
from sn_imagenet.reporting.tables import run_tables
from sn_imagenet.runs import Run, RunDirectory, write_text
from sn_imagenet.runs.files import SCORE_TABLE, TOP1_TABLE
from sn_imagenet.runs.scores import TOP1, read_score


def report_run(run: Run) -> None:
    """Write ``top1.md`` (``score.md`` for another score) and the figures of one run. Print the
    table and the paths.

    Raises:
        UserError: the result cannot be read, or a file cannot be written.
    """
    result = RunDirectory(run.path).read_result()
    assert result is not None
    report_runs({run.path: result})


def report_runs(results: Mapping[Path, dict[str, Any]], table: Path | None = None) -> None:
    """Write the table (see :func:`report_run`) and the figures into each run's directory. Print the
    table of all runs.

    Args:
        results: run directory -> contents of its ``result.json``.
        table: file to which the table of all runs is also written, if any.

    Raises:
        UserError: a file cannot be written.
    """
    written: list[Path] = []
    for run_dir, result in results.items():
        table_of_run = run_tables([result])
        name = TOP1_TABLE if read_score(result.get("score")) == TOP1 else SCORE_TABLE
        written.append(write_text(run_dir / name, table_of_run))
        written += plot_run(result, run_dir)
    combined = run_tables(list(results.values()))
    if table is not None:
        written.append(write_text(table, combined, "table="))
    print(combined)
    for path in written:
        print(path)
